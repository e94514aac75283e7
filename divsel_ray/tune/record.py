"""The record that a trial writes to its run folder for the processes that observe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from divsel_ray.store import read_json

TRIALS, SHARED, STATE = "trials", "shared", ".state"
"""Folders of a search."""
OBJECTIVE, ROUND = "objective", "round"
"""Keys of the reports to Ray Tune."""


def record_file(folder: Path, search: str) -> Path:
    """The record of a trial in its run folder. Searches may share the folder, and each has its own figures."""
    return folder / f"trial-{search}.json"


def read_record(folder: Path, search: str) -> dict[str, Any]:
    """Settings, state, rounds, figures and error of a trial, as far as known; empty if it has not started."""
    path = record_file(folder, search)
    return dict(read_json(path)) if path.is_file() else {}
