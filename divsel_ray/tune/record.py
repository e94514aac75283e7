"""What a trial leaves of itself, for those who look at it from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from divsel_ray.store import read_json

TRIALS, SHARED, RECORD = "trials", "shared", "trial.json"
"""Folders of a search, and the file of a trial."""
OBJECTIVE, ROUND = "objective", "round"
"""What Ray Tune is told of."""


def read_record(folder: Path) -> dict[str, Any]:
    """Settings, state, rounds, figures and error of a trial, as far as they are known; empty where it has not begun."""
    path = folder / RECORD
    return dict(read_json(path)) if path.is_file() else {}
