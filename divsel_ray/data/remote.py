"""Input files at an address: s3://, gs:// and file://, through pyarrow's file systems.

Options of the file system may be appended as in a URL: `s3://bucket/rows/*.jsonl?region=eu-west-1`,
`gs://anonymous@bucket/rows.parquet`. Credentials are read from where the store's own tools look for them.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from divsel_ray.errors import InputError, first_line

WORK_SUFFIX = ".divsel"
"""Suffix of the folder next to a selection that contains its stages."""
_SCHEMES = ("s3", "gs", "file")
_BUFFER_BYTES = 8 << 20
"""Size of one request to the store; an unbuffered stream would make one every few kilobytes."""
_GCS_PATIENCE = "retry_limit_seconds=30"
"""By default, the client of Google's store retries for a quarter of an hour."""


@dataclass(frozen=True)
class RemoteFile:
    """One file at an address. Offers the parts of `pathlib.Path` that readers need, and holds no connection.

    Attributes:
        root: URI of the file system: the bucket with its options, `s3://bucket?region=eu-west-1`.
        path: the file's path in the file system, `bucket/folder/rows.jsonl`.
        size: size in bytes when the address was listed.
    """

    root: str
    path: str
    size: int

    def __str__(self) -> str:
        return f"{self.parts[0]}{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.parts[-1]

    @property
    def parts(self) -> tuple[str, ...]:
        """The scheme and the parts of the path."""
        return (f"{self.root.partition('://')[0]}://", *self.path.split("/"))

    def open(self, *, random_access: bool = False) -> io.RawIOBase:
        """A stream of the file's bytes, sequential or with random access.

        Raises:
            InputError: the store does not return the file, here or while reading.
        """
        with _told(str(self)):
            filesystem = _filesystem(self.root)
            if random_access:
                return _Stream(filesystem.open_input_file(self.path), str(self))
            return _Stream(filesystem.open_input_stream(self.path, None, _BUFFER_BYTES), str(self))


Input = Path | RemoteFile
"""One input file."""


def size_of(file: Input) -> int:
    """Size of a file in bytes."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def open_bytes(file: Input) -> io.RawIOBase | io.BufferedReader:
    """A sequential stream of a file's raw bytes."""
    return file.open() if isinstance(file, RemoteFile) else file.open("rb")


def is_address(reference: str) -> bool:
    """Whether a reference has a scheme."""
    return "://" in reference


def is_hidden(name: str) -> bool:
    """Whether folders and globs skip this name: hidden files, as is usual for Parquet data sets, and folders of stages."""
    return name.startswith((".", "_")) or name.endswith(WORK_SUFFIX)


def list_remote(reference: str) -> list[RemoteFile]:
    """The files at an address, with any suffix: one file, those of a folder at any depth, or those matched by a glob.

    Hidden names (see `is_hidden`) are skipped, as are the contents of folders with such names.

    Raises:
        InputError: another scheme, no such file, or the store does not respond.
    """
    root, path = _split(reference)
    with _told(_shown(reference)):
        filesystem = _filesystem(root)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.File:
            return [RemoteFile(root, path, info.size)]
        folder, pattern = (path, ["**", "*"]) if info.type == fs.FileType.Directory else _split_glob(path)
        if not pattern:
            raise InputError(f"{_shown(reference)}: no such file or folder")
        selector = fs.FileSelector(folder, allow_not_found=True, recursive="**" in pattern or len(pattern) > 1)
        found = [entry for entry in filesystem.get_file_info(selector) if entry.type == fs.FileType.File]
    return [RemoteFile(root, e.path, e.size) for e in found if _matches(_below(e.path, folder), pattern)]


class _Stream(io.RawIOBase):
    """Arrow's stream as a Python stream; its errors are reported as the store's, never as broken content."""

    def __init__(self, stream: pa.NativeFile, name: str) -> None:
        self._stream, self._name = stream, name

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Whether `seek` works."""
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as data is available."""
        with _told(self._name):
            return cast(int, self._stream.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        return cast(int, self._stream.seek(offset, whence))

    def tell(self) -> int:
        """The position."""
        return cast(int, self._stream.tell())

    def close(self) -> None:
        """Close the underlying stream too."""
        self._stream.close()
        super().close()


@functools.lru_cache(maxsize=16)
def _filesystem(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]


def _split(reference: str) -> tuple[str, str]:
    """The URI of the file system, and the path in it."""
    scheme, _, rest = reference.partition("://")
    # A question mark is also a wildcard; only `?name=` starts the options.
    place, *options = re.split(r"\?(?=\w+=)", rest, maxsplit=1)
    if scheme == "file" and place.startswith("/"):
        return "file:///", "/" + unquote(place).strip("/")
    bucket, _, key = place.partition("/")
    if scheme not in _SCHEMES or scheme == "file" or not bucket:
        raise InputError(f"{_shown(reference)}: expected s3://BUCKET/PATH, gs://BUCKET/PATH or file:///PATH")
    if scheme == "gs":
        options = ["&".join([*options, _GCS_PATIENCE])]
    root = "?".join([f"{scheme}://{bucket}", *options])
    return root, f"{bucket.rpartition('@')[2]}/{key}".rstrip("/")


def _split_glob(path: str) -> tuple[str, list[str]]:
    """The folder before the first part with a wildcard, and the parts from there on; no parts without a wildcard."""
    parts = path.split("/")
    first = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/".join(parts[:first]), parts[first:]


def _below(path: str, folder: str) -> list[str]:
    return path.removeprefix(folder).strip("/").split("/")


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether path parts match those of a glob, as in `glob`: `*` stays within a part, `**` matches any number of parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        hidden = next((place for place, part in enumerate(parts) if is_hidden(part)), len(parts))
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(hidden + 1))
    if not parts or is_hidden(parts[0]):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _shown(reference: str) -> str:
    """The address without any credentials it contains."""
    return re.sub(r"://[^/@]*@", "://", re.split(r"\?(?=\w+=)", reference, maxsplit=1)[0])


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Convert the store's errors into one-line input errors."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        said = f"cannot be read ({first_line(error)}); check the address, the network and your credentials"
        raise InputError(f"{name}: {said}") from None
