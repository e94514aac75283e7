"""The input files of a job, and the fingerprint of their content."""

from __future__ import annotations

import glob
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from divsel_ray.data.hub import DESCRIPTIONS, HUB, download, parse_reference
from divsel_ray.data.readers import READABLE, SUFFIXES, known_suffix
from divsel_ray.data.remote import Input, is_address, is_hidden, list_remote, open_bytes
from divsel_ray.errors import InputError
from divsel_ray.models.references import PACKAGE, packaged_data
from divsel_ray.store import digest

_KINDS = "a file, a folder, a glob, s3://..., gs://..., hf:OWNER/NAME or package:NAME"


def find_inputs(data: Sequence[str], setting: str) -> list[Input]:
    """The files behind a list of references, sorted by path, each once.

    A reference is a file, a folder, a glob, any of these with s3://, gs:// or file://, `hf:OWNER/NAME` (optionally followed
    by `@REVISION`, `/FILE`, `/FOLDER` or `/GLOB`; fetched into the hub's cache), or `package:NAME`. A folder stands for its
    files at any depth, a glob for those it matches. Both skip files with other suffixes, names that start with a dot or an
    underscore, as is usual for Parquet data sets, and the folders in which selections keep their stages.

    Args:
        data: the references.
        setting: their setting, for messages.

    Raises:
        InputError: a reference does not exist, cannot be reached, contains nothing readable, or has an unknown suffix.
    """
    if not data:
        raise InputError(f"{setting}: empty; expected {_KINDS}")
    try:
        files = sorted({_absolute(file) for reference in data for file in _expand(reference)}, key=str, reverse=True)
    except InputError as error:
        raise InputError(f"{setting}: {error}") from None
    found = {file.resolve() if isinstance(file, Path) else file: file for file in files}
    return sorted(found.values(), key=_sort_key)


def named_files(path: str, setting: str) -> list[Path]:
    """The file that a user named, or the Parquet files of a folder.

    Args:
        path: of the file or folder.
        setting: that names it, for messages.

    Raises:
        InputError: there is none.
    """
    place = Path(path).expanduser()
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise InputError(f"{setting}: {path}: no such file, or no Parquet in that folder")
    return files


def source_names(files: Sequence[Input]) -> list[str]:
    """A name for each file: its file name, prefixed with as many parent folders as needed to make it unique."""
    parts = {file: _absolute(file).parts for file in files}
    depth = dict.fromkeys(files, 1)
    while True:
        names = {file: "/".join(parts[file][-depth[file] :]) for file in files}
        counts = Counter(names.values())
        clashing = [file for file in set(files) if counts[names[file]] > 1 and depth[file] < len(parts[file])]
        if not clashing:
            return [names[file] for file in files]
        for file in clashing:
            depth[file] += 1


def fingerprint_inputs(files: Sequence[Input], setting: str) -> str:
    """Fingerprint of the input: 16 hex digits from every file's name and bytes; remote files are read in full.

    It does not depend on the folder or order of the files, and changes with every byte. A file's name counts because it
    becomes the `source` of its rows.

    Args:
        files: from `find_inputs`.
        setting: their setting, for messages.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        return digest(sorted([name, _digest(file)] for name, file in zip(source_names(files), files, strict=True)))
    except InputError as error:
        raise InputError(f"{setting}: {error}") from None


def _digest(file: Input) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    try:
        with open_bytes(file) as stream:
            return hashlib.file_digest(cast(io.BufferedReader, stream), "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def _absolute(file: Input) -> Input:
    return file.absolute() if isinstance(file, Path) else file


def _sort_key(file: Input) -> tuple[str, ...]:
    return file.parts


def _expand(reference: str) -> Iterable[Input]:
    if reference.startswith(PACKAGE):
        return packaged_data(reference)
    if reference.startswith(HUB):
        # The cache also contains files of the data set that other programs fetched.
        found = _local(reference, download(reference, SUFFIXES) / parse_reference(reference).path)
        return [file for file in found if file.name not in DESCRIPTIONS]
    if is_address(reference):
        return _readable(reference, list_remote(reference))
    path = Path(reference).expanduser()
    return [_checked(path)] if path.is_file() else _local(reference, path)


def _local(reference: str, path: Path) -> Sequence[Input]:
    """The files of a reference at a local path."""
    if path.is_file():
        return _readable(reference, [path])
    if path.is_dir():
        return _readable(reference, [p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path))])
    if glob.has_magic(str(path)):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (takes absolute patterns)
        # A hidden folder before the first wildcard was named on purpose.
        named = next(place for place, part in enumerate(path.parts) if glob.has_magic(part))
        return _readable(reference, [m for m in matches if m.is_file() and not _hidden(Path(*m.parts[named:]))])
    hint = f"for a Hugging Face data set use hf:{reference}" if _looks_like_a_dataset(reference) else f"expected {_KINDS}"
    raise InputError(f"{reference}: no such file or folder; {hint}")


def _looks_like_a_dataset(reference: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", reference) is not None and known_suffix(Path(reference)) is None


def _checked(path: Path) -> Path:
    if known_suffix(path) is None:
        raise InputError(f"{path}: unknown suffix {path.suffix or '(none)'}; expected {READABLE}")
    return path


def _readable(reference: str, files: Sequence[Input]) -> Sequence[Input]:
    kept = [file for file in files if known_suffix(file)]
    if not kept:
        seen = ", ".join(sorted({Path(file.name).suffix or file.name for file in files})[:5])
        raise InputError(f"{reference}: contains no {READABLE} file" + (f" (only {seen})" if seen else ""))
    return kept


def _hidden(path: Path) -> bool:
    return any(map(is_hidden, path.parts))
