"""Which files a job reads, and what identifies their content."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from divsel_ray.data.readers import SUFFIXES, known_suffix
from divsel_ray.errors import InputError
from divsel_ray.models.references import PACKAGE, packaged_data
from divsel_ray.store import digest, file_digest


def find_inputs(data: Sequence[str]) -> list[Path]:
    """The files behind a list of files, folders, globs and `package:NAME` references, sorted by path, each once.

    A folder gives its files at any depth, a glob those it matches; both leave out files with another suffix and, as
    elsewhere in the Parquet world, names that begin with a dot or an underscore.

    Raises:
        InputError: something does not exist, holds nothing readable, or has a suffix that no reader knows.
    """
    if not data:
        raise InputError("pool.data: empty; give files, folders, globs or package:NAME")
    paths = sorted({path.absolute() for reference in data for path in _expand(reference)}, reverse=True)
    found = {path.resolve(): path for path in paths}
    return sorted(found.values())


def source_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its file name, with as many parent folders before it as make it unique."""
    parts = {path: path.absolute().parts for path in paths}
    depth = dict.fromkeys(paths, 1)
    while True:
        names = {path: "/".join(parts[path][-depth[path] :]) for path in paths}
        counts = Counter(names.values())
        clashing = [path for path in set(paths) if counts[names[path]] > 1 and depth[path] < len(parts[path])]
        if not clashing:
            return [names[path] for path in paths]
        for path in clashing:
            depth[path] += 1


def fingerprint_inputs(paths: Sequence[Path]) -> str:
    """What identifies the input: 16 hex digits of every file's name and bytes.

    It does not depend on the folder the files lie in or on their order; one changed byte changes it. A file's name
    counts because it becomes the rows' `source`.
    """
    return digest(sorted([name, file_digest(path)] for name, path in zip(source_names(paths), paths, strict=True)))


def _expand(reference: str) -> Iterable[Path]:
    if reference.startswith(PACKAGE):
        return packaged_data(reference)
    path = Path(reference).expanduser()
    if path.is_file():
        return [_checked(path)]
    if path.is_dir():
        return _readable(reference, [p for p in path.rglob("*") if not _hidden(p.relative_to(path))])
    if glob.has_magic(reference):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (takes absolute patterns)
        return _readable(reference, [match for match in matches if not _hidden(Path(match.name))])
    raise InputError(f"pool.data: {reference}: no such file or folder; expected a file, a folder, a glob or package:NAME")


def _checked(path: Path) -> Path:
    if known_suffix(path) is None:
        raise InputError(f"pool.data: {path}: unknown suffix {path.suffix or '(none)'}; expected {', '.join(SUFFIXES)}")
    return path


def _readable(reference: str, candidates: list[Path]) -> list[Path]:
    files = [path for path in candidates if path.is_file()]
    kept = [path for path in files if known_suffix(path)]
    if not kept:
        seen = ", ".join(sorted({path.suffix or path.name for path in files})[:5])
        raise InputError(f"pool.data: {reference}: no {', '.join(SUFFIXES)} file there" + (f" (only {seen})" if seen else ""))
    return kept


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
