"""The stages of a finished run as its manifest lists them, and means over rows."""

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
    """A mean over `count` rows, with its standard error (None below two rows)."""

    value: float
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class StageRecord:
    """A stage as the run's manifest lists it."""

    folder: Path
    facts: Mapping[str, Any]
    seconds: float
    cached: bool

    def file(self, name: str) -> Path:
        """One of the stage's files.

        Raises:
            InputError: it is gone.
        """
        return existing(self.folder / name)


def existing(path: Path) -> Path:
    """The path of a run's file.

    Raises:
        InputError: it is gone.
    """
    if not path.is_file():
        raise InputError(f"{path}: this file of the run is gone; run divsel run again with the same --out")
    return path


def read_stages(folder: str | Path) -> tuple[dict[str, Any], dict[str, StageRecord]]:
    """A run's manifest and its stages by name.

    Raises:
        InputError: there is no manifest, or it is not one.
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
        raise InputError(f"{folder}: no finished run here; run divsel run first") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a run's manifest ({error!r}); run divsel run again with the same --out") from None
    return manifest, stages


def round_numbers(stages: Iterable[str]) -> list[int]:
    """Rounds that drew rows, in order, by the names of stages."""
    return sorted(number for name in stages if kind_of(name) == "draw" and (number := round_of(name)) is not None)


def known(values: Iterable[float | None]) -> list[float]:
    """The values that are finite numbers."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def number(value: float | None) -> float | None:
    """The value, or None where it is not a finite number."""
    return next(iter(known([value])), None)


def mean_of(values: Iterable[float | None]) -> Mean | None:
    """The mean of those that are finite numbers; None where there are none."""
    numbers = known(values)
    if not numbers:
        return None
    count, mean = len(numbers), math.fsum(numbers) / len(numbers)
    if count < 2:
        return Mean(mean, None, count)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
    return Mean(mean, math.sqrt(variance / count), count)
