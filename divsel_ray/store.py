"""The run store: content-addressed stage outputs, atomic commit, resume.

A stage's output lives in `<root>/<stage>/<key>/`. The key hashes what the output depends on: the stage's version, its
configuration and the keys of its inputs. `_manifest.json` is written last, by rename, and is the commit. A folder
without it is unfinished; finished files in it (each is renamed into place) are reused.

    store = Store(folder)
    with store.lock():
        pool = store.stage("pool", version=1, config={...}, inputs=[])
        if not pool.committed:
            ...write files into pool.start()...
            pool.commit({"rows": 10})
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.errors import InputError, JobError

MANIFEST = "_manifest.json"
"""Manifest of a stage."""
RUN_MANIFEST = "manifest.json"
"""Manifest of a finished run: its configuration, stages and results."""
_UNFINISHED = ".tmp-"
_LOCK = ".lock"
_WRITTEN = (RUN_MANIFEST, "README.md", "report.html", "selection.jsonl", "selection.parquet")
"""Files that a run writes into its folder, in addition to its stages."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` that is renamed to `path` when the block succeeds.

    Works for files and for folders; a folder replaces an existing folder. Readers see either the old or the new content, never
    a mixture, even after a power cut.

    Raises:
        IsADirectoryError: a file was created, but a folder of that name exists.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished_beside(path)
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            _flush(file)
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that an interruption leaves nothing that looks finished."""
    doomed = _unfinished_beside(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _unfinished_beside(path: Path) -> Path:
    """A unique path that `files` and `commit` recognise as incomplete."""
    return path.with_name(f"{path.name}{_UNFINISHED}{uuid.uuid4().hex[:12]}")


def _flush(path: Path) -> None:
    """Flush a file's content, or a folder's list of entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True, ensure_ascii=False)
        stream.write("\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 and with line endings unchanged."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_table(path: str | Path, table: pa.Table, **options: Any) -> None:
    """Write Parquet atomically; `options` are passed to pyarrow."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, **options)


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write a NumPy file atomically, under exactly this name.

    Raises:
        ValueError: the array contains objects, which would have to be pickled.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


@dataclass
class Stage:
    """The folder of one stage in a run, committed or not; if `shared` is given, a commit is also linked there."""

    name: str
    key: str
    folder: Path
    identity: Mapping[str, Any]
    shared: Path | None = None
    _started: float = field(default_factory=time.time)

    @property
    def committed(self) -> bool:
        """Whether the output is complete: the manifest exists and every file it lists has the recorded size."""
        try:
            files = read_json(self.folder / MANIFEST)["files"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError):
            return False
        return all(_size(self.folder / name) == entry["bytes"] for name, entry in files.items())

    @property
    def facts(self) -> dict[str, Any]:
        """Facts recorded when the stage was committed (counts, losses, ...)."""
        return dict(read_json(self.folder / MANIFEST)["facts"])

    @property
    def seconds(self) -> float:
        """Duration of the work, from when the committing process started the stage."""
        return float(read_json(self.folder / MANIFEST)["seconds"])

    def start(self) -> Path:
        """Create the folder, remove damaged files of an earlier commit from it, and start measuring time."""
        if self.folder.is_symlink():
            # Shared by another run and no longer complete: leave that run's folder unchanged.
            self.folder.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).is_file():
            self._discard_damaged()
        self._started = time.time()
        return self.folder

    def _discard_damaged(self) -> None:
        """Remove damaged files, since truncated parts would otherwise count as finished when the stage is rebuilt."""
        try:
            damaged = self.damaged()
        except (json.JSONDecodeError, KeyError):
            damaged = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]
        for name in damaged:
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def files(self, pattern: str = "*.parquet") -> list[str]:
        """Paths of the stage's files that match the pattern, sorted by name."""
        return [str(p) for p in sorted(self.folder.glob(pattern)) if _UNFINISHED not in p.name]

    def damaged(self) -> list[str]:
        """Names of committed files that are missing or whose content has changed since the commit."""
        files = read_json(self.folder / MANIFEST)["files"]
        places = {name: self.folder / name for name in files}
        return [name for name, path in places.items() if not path.is_file() or file_digest(path) != files[name]["sha256"]]

    def commit(self, facts: Mapping[str, Any]) -> None:
        """Record the size and hash of every file, and rename the manifest into place."""
        _remove_unfinished(self.folder)
        files = {
            str(path.relative_to(self.folder)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        seconds = round(time.time() - self._started, 3)
        record = {"stage": self.name, "key": self.key, "identity": self.identity, "files": files}
        write_json(self.folder / MANIFEST, {**record, "facts": dict(facts), "seconds": seconds})
        if self.shared is not None:
            _link(self.shared, self.folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _link(place: Path, target: Path) -> None:
    """Make `place` a relative link to a folder, unless a complete stage is already there: the first commit wins."""
    if Stage("", "", place, {}).committed or (place.is_dir() and not place.is_symlink()):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished_beside(place)
    temporary.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()), target_is_directory=True)
    temporary.replace(place)


def _remove_unfinished(folder: Path) -> None:
    for path in list(folder.rglob(f"*{_UNFINISHED}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Store:
    """The stages of one run folder.

    Several runs find one another's stages through a `shared` folder: every committed stage is linked there, and from there into
    the folder of any run that needs it next. Each run writes into its own folder only.
    """

    def __init__(self, root: str | Path, shared: str | Path | None = None) -> None:
        if "://" in str(root):
            raise InputError(
                f"{root}: run folders must be on a local or mounted file system; mount the bucket and use the mount's path"
            )
        self.root = Path(root).absolute()
        self.shared = None if shared is None else Path(shared).absolute()

    def stage(self, name: str, version: int, config: Mapping[str, Any], inputs: Sequence[str]) -> Stage:
        """The folder of a stage with this identity; `start` creates it.

        Args:
            name: folder name under the root, e.g. `pool` or `round-1/train`.
            version: incremented by the stage's author when its output changes.
            config: the settings the output depends on (JSON values).
            inputs: keys of the stages, or fingerprints of the files, that it reads.

        If the shared folder contains the complete stage, it is linked into this run.
        """
        identity = {"stage": name, "version": version, "config": dict(config), "inputs": list(inputs)}
        key = digest(identity)
        if self.shared is None:
            return Stage(name, key, self.root / name / key, identity)
        self._find(self.root / name / key, self.shared / name / key)
        return Stage(name, key, self.root / name / key, identity, self.shared / name / key)

    @staticmethod
    def _find(own: Path, shared: Path) -> None:
        """Link a complete stage from the shared folder into this one; drop a link to a stage that is no longer complete."""
        if own.is_symlink() and not Stage("", "", own, {}).committed:
            own.unlink()
        if not own.exists() and Stage("", "", shared, {}).committed:
            _link(own, shared)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run folder; the kernel releases the lock when this process dies, however it dies.

        Raises:
            JobError: another process is using this folder.
            InputError: it cannot be written to or locked, or contains other files that a run would overwrite.
        """
        self._refuse_strangers()
        with self._locked() as stream:
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {os.uname().nodename}")
            stream.flush()
            yield

    def _locked(self) -> TextIO:
        """The locked file, whose existence also marks the folder as a run folder."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            stream = (self.root / _LOCK).open("a+")
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise JobError(f"{self.root}: {holder} is working on this run folder; wait for it or choose another --out") from None
        except OSError as error:
            raise InputError(
                f"{self.root}: cannot be used as a run folder ({error.strerror}); choose a writable one on a file system with "
                "file locks (flock)"
            ) from None
        return stream

    def _refuse_strangers(self) -> None:
        found = [name for name in _WRITTEN if (self.root / name).exists()]
        if found and not (self.root / _LOCK).exists() and not any(self.root.glob(f"*/*/{MANIFEST}")):
            raise InputError(
                f"{self.root}: contains a {found[0]} that is not from a run and would be overwritten; choose a new folder"
            )
