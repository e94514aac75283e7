"""The stages of a finished run, as listed in its manifest, and means over rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divsel_ray.errors import InputError
from divsel_ray.stage_names import kind_of, round_of
from divsel_ray.store import RUN_MANIFEST, read_json


@dataclass(frozen=True)
class Mean:
    """A mean over `count` rows, with its standard error (None for fewer than two rows)."""

    value: float
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class StageRecord:
    """A stage as listed in the run's manifest."""

    folder: Path
    facts: Mapping[str, Any]
    seconds: float
    cached: bool

    def file(self, name: str) -> Path:
        """Path of one of the stage's files.

        Raises:
            InputError: the file is missing.
        """
        return existing(self.folder / name)


def existing(path: Path) -> Path:
    """Check that a file of a run exists, and return its path.

    Raises:
        InputError: the file is missing.
    """
    if not path.is_file():
        raise InputError(f"{path}: this file of the run is missing; run divsel run again with the same --out")
    return path


def read_stages(folder: str | Path) -> tuple[dict[str, Any], dict[str, StageRecord]]:
    """Read a run's manifest and its stages by name.

    Raises:
        InputError: the manifest is missing or invalid.
    """
    path = Path(folder) / RUN_MANIFEST
    try:
        manifest = dict(read_json(path))
        dict(manifest["config"])
        stages = {
            entry["stage"]: StageRecord(
                Path(folder) / entry["stage"] / entry["key"], entry["facts"], entry["seconds"], entry["cached"]
            )
            for entry in manifest["stages"]
        }
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no finished run in this folder; run divsel run first") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a valid run manifest ({error!r}); run divsel run again with the same --out") from None
    return manifest, stages


def round_numbers(stages: Iterable[str]) -> list[int]:
    """Numbers of the rounds that drew rows, in order, from the names of stages."""
    return sorted(number for name in stages if kind_of(name) == "draw" and (number := round_of(name)) is not None)


def known(values: Iterable[float | None]) -> list[float]:
    """The values that are finite numbers."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def number(value: float | None) -> float | None:
    """The value, or None if it is not a finite number."""
    return next(iter(known([value])), None)


def mean_of(values: Iterable[float | None]) -> Mean | None:
    """Mean of the finite values; None if there are none."""
    numbers = known(values)
    if not numbers:
        return None
    count, mean = len(numbers), math.fsum(numbers) / len(numbers)
    if count < 2:
        return Mean(mean, None, count)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
    return Mean(mean, math.sqrt(variance / count), count)
