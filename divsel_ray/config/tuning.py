"""Settings of a search: the job, its search space, the objective, and when to stop a trial."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section
from divsel_ray.config.evaluation import EvaluateConfig
from divsel_ray.config.files import build_config, build_section, put, read_around_job
from divsel_ray.config.job import Config

MOST_CHECKED = 512
"""Up to this many combinations are all checked before the search starts; of more, each value with the others' first ones."""

Point = Mapping[str, Any]
"""Settings of a trial by dotted key, e.g. {"cluster.k": 64}."""


class Dimension(Section):
    """The values of one setting; exactly one key must be given."""

    choice: list[Any] | None = Field(None, min_length=1, description="One of these values.")
    uniform: tuple[float, float] | None = Field(None, description="A number from this interval.")
    loguniform: tuple[float, float] | None = Field(None, description="A number from this interval, uniform in its logarithm.")
    randint: tuple[int, int] | None = Field(None, description="An integer from this interval, both ends included.")
    lograndint: tuple[int, int] | None = Field(None, description="An integer from this interval, uniform in its logarithm.")

    @property
    def kind(self) -> str:
        """The name of the given key."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> list[Any]:
        """The values of a choice; for a range, its ends and a number in between."""
        if self.choice is not None:
            return self.choice
        low, high = getattr(self, self.kind)
        middle = math.sqrt(low * high) if self.kind.startswith("log") else (low + high) / 2
        if self.kind.endswith("randint"):
            return [low, round(middle), high]
        # Whole ends would be valid for an integer setting, but numbers drawn between them would not: include a fraction.
        return [low, middle + (high - middle) / math.pi, high]

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(KINDS)}; given: {', '.join(given) or 'none'}")
        if self.choice is None:
            low, high = getattr(self, self.kind)
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"{self.kind} [{low:g}, {high:g}]: expected two different finite numbers, the lower one first")
            if self.kind.startswith("log") and low <= 0:
                raise ValueError(f"{self.kind} [{low:g}, {high:g}]: expected positive numbers, as the logarithm is taken")
        return self


KINDS = tuple(Dimension.model_fields)


class BenchmarkConfig(Section):
    """How the trials' models are evaluated, for measures of the form `evaluate:TASK`."""

    limit: int | None = Field(None, ge=1, description="Maximum number of documents of a task, or of HumanEval problems.")
    tasks_folder: str | None = Field(None, description="Folder of your own task files; works offline.")
    settings: EvaluateConfig = EvaluateConfig()


class TuningConfig(Section):
    """A search over the settings of a job."""

    job: dict[str, Any] = Field(description="The job to vary: its configuration, or the path of its file.")
    search: dict[str, Dimension] = Field(
        min_length=1, description="Search space: settings of the job and their values, e.g. cluster.k: {choice: [64, 128]}."
    )
    objective: str = Field(description="Measure to optimise: held_out_loss, vendi, evaluate:gsm8k, ...")
    mode: Literal["max", "min"] | None = Field(
        None, description="Maximise or minimise the objective. Default: the better direction, e.g. min for a loss."
    )
    measures: list[str] = Field(
        [], description="Further measures of every trial, named like objectives; their correlation with the objective is shown."
    )
    benchmark: BenchmarkConfig = BenchmarkConfig()
    trials: int | None = Field(None, ge=1, description="Number of trials; leave out for a grid, which tries every combination.")
    searcher: Literal["grid", "random", "optuna"] = Field("random", description="Search algorithm that proposes the trials.")
    scheduler: Literal["none", "asha"] = Field(
        "none", description="asha: after each round, stop trials that are worse than the others (Li et al. 2020)."
    )
    grace_rounds: int = Field(1, ge=1, description="Rounds before asha may stop a trial.")
    reduction: float = Field(3, gt=1, description="Reduction factor of asha: one in this many trials continues.")
    seed: int = Field(0, ge=0, description="Seed of the searcher; the job has its own.")
    concurrency: int | None = Field(None, ge=1, description="Number of concurrent trials. Default: as many as fit the cluster.")

    @model_validator(mode="after")
    def _consistent(self) -> TuningConfig:
        if self.searcher == "grid":
            ranges = [name for name, dimension in self.search.items() if dimension.choice is None]
            if ranges:
                raise ValueError(f"search {ranges[0]}: searcher grid needs `choice`; list values, or use searcher random")
            if self.trials is not None:
                raise ValueError("trials: a grid tries every combination; remove trials, or use searcher random")
        elif self.trials is None:
            raise ValueError(f"trials: required by searcher {self.searcher}; set the number of trials")
        return self

    @property
    def count(self) -> int:
        """Number of trials."""
        return self.trials or math.prod(len(dimension.values) for dimension in self.search.values())

    def config_of(self, point: Point) -> Config:
        """The job's configuration with the settings of `point`.

        Raises:
            InputError: the settings are invalid or contradict others.
        """
        values = copy.deepcopy(self.job)
        for place, value in point.items():
            put(values, place, value, f"search {place}")
        return build_config(values, ", ".join(["search", *(f"{place}={value}" for place, value in point.items())]))

    def corners(self) -> Iterator[Point]:
        """Points that represent all others in validation: all combinations of the dimensions' `values`, unless they are many."""
        names, values = list(self.search), [dimension.values for dimension in self.search.values()]
        if math.prod(map(len, values)) <= MOST_CHECKED:
            yield from (dict(zip(names, one, strict=True)) for one in itertools.product(*values))
        else:
            yield from self.variations(most=MOST_CHECKED)

    def variations(self, most: int = 2) -> Iterator[Point]:
        """The point of first values, and points that differ from it in one dimension, with up to `most` values of each."""
        first = {name: dimension.values[0] for name, dimension in self.search.items()}
        yield first
        for name, dimension in self.search.items():
            yield from ({**first, name: value} for value in dimension.values[1:most])


def load_tuning(path: str | Path, changes: Sequence[str] = ()) -> TuningConfig:
    """Read the YAML file of a search and the job's file that it names, and apply `key.path=value` overrides to both.

    Raises:
        InputError: a file is missing or is not YAML, a key is unknown, or a value is invalid, including those to be tried.
    """
    values = read_around_job(Path(path), changes)
    values["search"] = flatten(values.get("search"))
    tuning = build_section(TuningConfig, values, str(path), "search")
    for corner in tuning.corners():
        tuning.config_of(corner)
    return tuning


def flatten(search: Any, place: str = "") -> Any:
    """Flatten nested settings to dotted keys: {cluster: {k: {choice: [4]}}} to {cluster.k: {choice: [4]}}; drop null ones."""
    if not isinstance(search, dict):
        return search
    found: dict[str, Any] = {}
    for key, value in search.items():
        name = f"{place}{key}"
        if isinstance(value, dict) and value and all(below is None or isinstance(below, dict) for below in value.values()):
            found |= flatten(value, f"{name}.")
        else:
            found[name] = value
    return found if place else {name: value for name, value in found.items() if value is not None}
