"""`divsel clean`: find and remove stages of a run folder that its last finished job did not use.

A run folder keeps every stage ever built in it, so that returning to an earlier budget or setting costs nothing. Stages from
other settings and interrupted ones can be removed when disk space is needed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from divsel_ray.report.records import read_stages
from divsel_ray.stage_maker import VERSIONS
from divsel_ray.store import Stage, Store


@dataclass(frozen=True)
class Leftover:
    """A stage that the last finished job of its run folder did not use.

    Attributes:
        stage: name of the stage.
        folder: its folder.
        bytes: size on disk; 0 for a stage that is a link into another run folder.
        finished: whether it is complete, so that a job that needs it would find it.
    """

    stage: str
    folder: Path
    bytes: int
    finished: bool


def find_leftovers(root: Path) -> list[Leftover]:
    """The stages in a run folder that its last finished job did not use, sorted by name.

    Raises:
        InputError: the folder does not contain a finished run.
    """
    _, used = read_stages(root)
    kept = {record.folder for record in used.values()}
    return [_leftover(root, folder) for folder in sorted(_stage_folders(root)) if folder not in kept]


def remove(root: Path, leftovers: Sequence[Leftover]) -> None:
    """Delete stages. The target of a link into another run folder is kept.

    Raises:
        JobError: a job is running in the folder.
    """
    with Store(root).lock():
        for one in leftovers:
            if one.folder.is_symlink():
                one.folder.unlink()
            else:
                shutil.rmtree(one.folder)
            _remove_empty(one.folder.parent, root)


def _stage_folders(root: Path) -> Iterator[Path]:
    """Folders named by a key, below the name of a stage; anything else in a run folder is left alone."""
    for pattern in ("*/*", "*/*/*"):
        for folder in root.glob(pattern):
            if folder.is_dir() and folder.parent.name in VERSIONS and re.fullmatch("[0-9a-f]{16}", folder.name):
                yield folder


def _leftover(root: Path, folder: Path) -> Leftover:
    files = [] if folder.is_symlink() else [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    name = folder.parent.relative_to(root).as_posix()
    size = sum(path.stat().st_size for path in files)
    return Leftover(name, folder, size, Stage(name, folder.name, folder, {}).committed)


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
