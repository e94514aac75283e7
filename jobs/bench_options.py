"""Shared parts of the benchmarks' command lines: lists of words and numbers, checks of names, a description of the machine."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Collection, Sequence
from typing import Any

from divsel_ray.errors import InputError

_LIBRARIES = ("divsel-ray", "faiss-cpu", "scikit-learn", "torch", "ray", "numpy")


def words(text: str) -> list[str]:
    """Parse comma-separated words."""
    return text.split(",")


def numbers(text: str) -> tuple[int, ...]:
    """Parse comma-separated integers."""
    return tuple(int(word) for word in text.split(","))


def check_known(option: str, given: Sequence[str] | None, known: Collection[str]) -> None:
    """Check the names given to an option.

    Raises:
        InputError: a name is unknown; the message lists the known ones.
    """
    for name in given or ():
        if name not in known:
            raise InputError(f"--{option} {name}: expected some of {','.join(known)}")


def machine() -> dict[str, Any]:
    """The machine: its cores, the load average of the last minute, and the versions of the libraries."""
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0], **{name: _version(name) for name in _LIBRARIES}}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
