"""Where a fit is, written after every iteration, so that one that was killed continues."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from divsel_ray.errors import InputError
from divsel_ray.store import atomic_path


class Journal:
    """One file of named arrays.

    Args:
        path: the file; its folder exists, and every node sees it.
        identity: what the state belongs to. A file with another identity is ignored and overwritten.

    Raises:
        InputError: there is a folder of that name.
    """

    def __init__(self, path: str | Path, identity: str) -> None:
        self._path, self._identity = Path(path).resolve(), identity
        if self._path.is_dir():
            raise InputError(f"{path}: a folder; expected the name of a file that keeps where the fit is")

    def write(self, arrays: dict[str, Any]) -> None:
        """Replace what the file holds, in one step."""
        with atomic_path(self._path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, identity=np.array(self._identity), **arrays)

    def read(self) -> dict[str, Any] | None:
        """What was written last; None when nothing was, or for something else, or if the file is damaged.

        Raises:
            InputError: the file is somebody's array, which would be overwritten.
        """
        try:
            stored = np.load(self._path, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise InputError(f"{self._path}: holds an array; expected the name of a file that keeps where the fit is")
            with stored:
                arrays = dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        return arrays if str(arrays.pop("identity", "")) == self._identity else None

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)
