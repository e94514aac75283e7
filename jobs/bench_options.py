"""What the benchmarks' command lines share: lists of words and numbers, names that must be known, the machine in words."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Collection, Sequence
from typing import Any

from divsel_ray.errors import InputError

_LIBRARIES = ("divsel-ray", "faiss-cpu", "scikit-learn", "torch", "ray", "numpy")


def words(text: str) -> list[str]:
    """Words between commas."""
    return text.split(",")


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    return tuple(int(word) for word in text.split(","))


def check_known(option: str, given: Sequence[str] | None, known: Collection[str]) -> None:
    """Refuse names that an option does not have.

    Raises:
        InputError: says which are known.
    """
    for name in given or ():
        if name not in known:
            raise InputError(f"--{option} {name}: expected some of {','.join(known)}")


def machine() -> dict[str, Any]:
    """What was measured on: cores, how many processes wanted them in the minute before, and the libraries' versions."""
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0], **{name: _version(name) for name in _LIBRARIES}}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
