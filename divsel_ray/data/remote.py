"""Input files behind an address: s3://, gs:// and file://, through pyarrow's file systems.

Options of the file system may follow as in a web address: `s3://bucket/rows/*.jsonl?region=eu-west-1`,
`gs://anonymous@bucket/rows.parquet`. Credentials are found where the store's own tools look for them.
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
"""What the folder beside a selection ends with, in which its stages are kept."""
_SCHEMES = ("s3", "gs", "file")
_BUFFER_BYTES = 8 << 20
"""Of one request to the store; a stream without a buffer makes one for every few kilobytes."""
_GCS_PATIENCE = "retry_limit_seconds=30"
"""Left to itself, the client of Google's store goes on trying for a quarter of an hour."""


@dataclass(frozen=True)
class RemoteFile:
    """One file behind an address. It answers like a `pathlib.Path` where a reader asks, and holds no connection.

    Attributes:
        root: what the file system is made from: the bucket with its options, `s3://bucket?region=eu-west-1`.
        path: the file's path there, `bucket/folder/rows.jsonl`.
        size: bytes, when the address was listed.
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
        """The bytes, from the beginning to the end, or in any order.

        Raises:
            InputError: the store does not give the file; while reading, too.
        """
        with _told(str(self)):
            filesystem = _filesystem(self.root)
            if random_access:
                return _Stream(filesystem.open_input_file(self.path), str(self))
            return _Stream(filesystem.open_input_stream(self.path, None, _BUFFER_BYTES), str(self))


Input = Path | RemoteFile
"""One input file."""


def size_of(file: Input) -> int:
    """Bytes of a file."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def open_bytes(file: Input) -> io.RawIOBase | io.BufferedReader:
    """A file's bytes as they lie there, from the beginning to the end."""
    return file.open() if isinstance(file, RemoteFile) else file.open("rb")


def is_address(reference: str) -> bool:
    """Whether a reference has a scheme."""
    return "://" in reference


def is_hidden(name: str) -> bool:
    """Whether folders and globs leave out what has this name: hidden files, as in the Parquet world, and folders of stages."""
    return name.startswith((".", "_")) or name.endswith(WORK_SUFFIX)


def list_remote(reference: str) -> list[RemoteFile]:
    """The files behind an address, whatever their suffix: one file, those of a folder at any depth, or those a glob matches.

    Hidden names (see `is_hidden`) are left out, and so is what lies in a folder of such a name.

    Raises:
        InputError: another scheme, nothing there, or the store does not answer.
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
    """Arrow's stream as Python's, whose errors are the store's and never taken for broken content."""

    def __init__(self, stream: pa.NativeFile, name: str) -> None:
        self._stream, self._name = stream, name

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Whether `seek` works."""
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, if there is so much."""
        with _told(self._name):
            return cast(int, self._stream.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        return cast(int, self._stream.seek(offset, whence))

    def tell(self) -> int:
        """The place."""
        return cast(int, self._stream.tell())

    def close(self) -> None:
        """Close the stream below too."""
        self._stream.close()
        super().close()


@functools.lru_cache(maxsize=16)
def _filesystem(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]


def _split(reference: str) -> tuple[str, str]:
    """What the file system is made from, and the path in it."""
    scheme, _, rest = reference.partition("://")
    # A question mark is a wildcard too; only `?name=` begins options.
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
    """The folder before the first part with a wildcard, and the parts from there on; none without a wildcard."""
    parts = path.split("/")
    first = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/".join(parts[:first]), parts[first:]


def _below(path: str, folder: str) -> list[str]:
    return path.removeprefix(folder).strip("/").split("/")


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether path parts match a glob's, as in `glob`: `*` stays within a part, `**` is any number of parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        hidden = next((place for place, part in enumerate(parts) if is_hidden(part)), len(parts))
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(hidden + 1))
    if not parts or is_hidden(parts[0]):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _shown(reference: str) -> str:
    """An address without the credentials that it may carry."""
    return re.sub(r"://[^/@]*@", "://", re.split(r"\?(?=\w+=)", reference, maxsplit=1)[0])


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn the store's errors into one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        said = f"cannot be read ({first_line(error)}); check the address, the network and your credentials"
        raise InputError(f"{name}: {said}") from None
