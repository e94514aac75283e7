"""What a trial leaves of itself, for those who look at it from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from divsel_ray.store import read_json

TRIALS, SHARED, STATE = "trials", "shared", ".state"
"""Folders of a search."""
OBJECTIVE, ROUND = "objective", "round"
"""What Ray Tune is told of."""


def record_file(folder: Path, search: str) -> Path:
    """The file of a trial in its run folder, which is other searches' too: each has figures of its own."""
    return folder / f"trial-{search}.json"


def read_record(folder: Path, search: str) -> dict[str, Any]:
    """Settings, state, rounds, figures and error of a trial, as far as they are known; empty where it has not begun."""
    path = record_file(folder, search)
    return dict(read_json(path)) if path.is_file() else {}
