"""The checkpoint of a fit, written after every iteration, so that a killed fit resumes."""

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
        path: the file; its folder exists and is visible to every node.
        identity: identifies the fit that the state belongs to. A file with another identity is ignored and overwritten.

    Raises:
        InputError: `path` is a folder.
    """

    def __init__(self, path: str | Path, identity: str) -> None:
        self._path, self._identity = Path(path).resolve(), identity
        if self._path.is_dir():
            raise InputError(f"{path}: is a folder; expected the name of a checkpoint file")

    def write(self, arrays: dict[str, Any]) -> None:
        """Replace the contents of the file atomically."""
        with atomic_path(self._path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, identity=np.array(self._identity), **arrays)

    def read(self) -> dict[str, Any] | None:
        """Return what was written last; None if there is no file, if it belongs to another fit, or if it is damaged.

        Raises:
            InputError: the file is an array of the user's, which would be overwritten.
        """
        try:
            stored = np.load(self._path, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise InputError(f"{self._path}: contains an array; expected the name of a checkpoint file")
            with stored:
                arrays = dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        return arrays if str(arrays.pop("identity", "")) == self._identity else None

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)
