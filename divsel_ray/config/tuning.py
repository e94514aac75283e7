"""A search over settings: the job, what varies and how, what counts, and when a trial may be stopped."""

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
"""Combinations that are all checked before anything starts; of more, each value is, beside the first of the others."""

Point = Mapping[str, Any]
"""Settings of a trial by their place in the job's configuration, e.g. {"cluster.k": 64}."""


class Dimension(Section):
    """The values of one setting: exactly one of these."""

    choice: list[Any] | None = Field(None, min_length=1, description="One of these values.")
    uniform: tuple[float, float] | None = Field(None, description="A number between two.")
    loguniform: tuple[float, float] | None = Field(None, description="Likewise, its logarithm uniform; both positive.")
    randint: tuple[int, int] | None = Field(None, description="A whole number between two, both included.")
    lograndint: tuple[int, int] | None = Field(None, description="Likewise, its logarithm uniform; both positive.")

    @property
    def kind(self) -> str:
        """The name of what is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> list[Any]:
        """A choice's values; of a range its ends and a number between."""
        if self.choice is not None:
            return self.choice
        low, high = getattr(self, self.kind)
        middle = math.sqrt(low * high) if self.kind.startswith("log") else (low + high) / 2
        if self.kind.endswith("randint"):
            return [low, round(middle), high]
        # An end may be whole where the setting has to be; numbers between are not.
        return [low, middle + (high - middle) / math.pi, high]

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(KINDS)}; given: {', '.join(given) or 'none'}")
        if self.choice is None:
            low, high = getattr(self, self.kind)
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"{self.kind} [{low:g}, {high:g}]: expected two finite numbers, the lower one first")
            if self.kind.startswith("log") and low <= 0:
                raise ValueError(f"{self.kind} [{low:g}, {high:g}]: only positive numbers have a logarithm")
        return self


KINDS = tuple(Dimension.model_fields)


class BenchmarkConfig(Section):
    """How the models of trials are asked, where a figure is `evaluate:TASK`."""

    limit: int | None = Field(None, ge=1, description="Documents of a task, or problems of HumanEval, at most.")
    tasks_folder: str | None = Field(None, description="Folder of task files of your own; works offline.")
    settings: EvaluateConfig = EvaluateConfig()


class TuningConfig(Section):
    """A search over the settings of a job."""

    job: dict[str, Any] = Field(description="The job that varies: its configuration, or in a file the path of one.")
    search: dict[str, Dimension] = Field(
        min_length=1, description="Settings of the job and their values, e.g. cluster.k: {choice: [64, 128]}."
    )
    objective: str = Field(description="What the best trial has most or least of: held_out_loss, vendi, evaluate:gsm8k, ...")
    mode: Literal["max", "min"] | None = Field(None, description="Default: as it is better, e.g. min of a loss.")
    measures: list[str] = Field(
        [], description="Further figures of every trial, named as objectives are; how each goes with the objective is shown."
    )
    benchmark: BenchmarkConfig = BenchmarkConfig()
    trials: int | None = Field(None, ge=1, description="How many; of a grid, whose every point is one, left out.")
    searcher: Literal["grid", "random", "optuna"] = Field("random", description="Where the next trial's settings come from.")
    scheduler: Literal["none", "asha"] = Field(
        "none", description="asha: stop trials after a round in which others were better (Li et al. 2020)."
    )
    grace_rounds: int = Field(1, ge=1, description="Rounds that asha lets every trial run.")
    reduction: float = Field(3, gt=1, description="Of so many trials at a round, asha lets one go on.")
    seed: int = Field(0, ge=0, description="Of the searcher; the job has its own.")
    concurrency: int | None = Field(None, ge=1, description="Trials at once. Default: as many as the cluster holds.")

    @model_validator(mode="after")
    def _consistent(self) -> TuningConfig:
        if self.searcher == "grid":
            ranges = [name for name, dimension in self.search.items() if dimension.choice is None]
            if ranges:
                raise ValueError(f"search {ranges[0]}: a grid needs `choice` everywhere; list values, or take searcher random")
            if self.trials is not None:
                raise ValueError("trials: a grid tries every combination; leave it out, or take searcher random")
        elif self.trials is None:
            raise ValueError(f"trials: how many is searcher {self.searcher} to try? give a number")
        return self

    @property
    def count(self) -> int:
        """How many trials there will be."""
        return self.trials or math.prod(len(dimension.values) for dimension in self.search.values())

    def config_of(self, point: Point) -> Config:
        """The job's configuration with these settings.

        Raises:
            InputError: they contradict the others.
        """
        values = copy.deepcopy(self.job)
        for place, value in point.items():
            put(values, place, value, f"search {place}")
        return build_config(values, ", ".join(["search", *(f"{place}={value}" for place, value in point.items())]))

    def corners(self) -> Iterator[Point]:
        """Points that show whether the others are possible: every combination of the dimensions' `values`, if they are few."""
        names, values = list(self.search), [dimension.values for dimension in self.search.values()]
        if math.prod(map(len, values)) <= MOST_CHECKED:
            yield from (dict(zip(names, one, strict=True)) for one in itertools.product(*values))
        else:
            yield from self.variations(most=MOST_CHECKED)

    def variations(self, most: int = 2) -> Iterator[Point]:
        """The first value of every dimension, and points that differ from it in one, at up to so many values of each."""
        first = {name: dimension.values[0] for name, dimension in self.search.items()}
        yield first
        for name, dimension in self.search.items():
            yield from ({**first, name: value} for value in dimension.values[1:most])


def load_tuning(path: str | Path, changes: Sequence[str] = ()) -> TuningConfig:
    """Read a YAML file of a search, and the job's file that it names, and apply `key.path=value` changes to both.

    Raises:
        InputError: a file is missing or is not YAML, a key or value is not allowed, or a value that is to be tried is not.
    """
    values = read_around_job(Path(path), changes)
    values["search"] = flatten(values.get("search"))
    tuning = build_section(TuningConfig, values, str(path), "search")
    for corner in tuning.corners():
        tuning.config_of(corner)
    return tuning


def flatten(search: Any, place: str = "") -> Any:
    """Nested settings by their dotted keys: {cluster: {k: {choice: [4]}}} is {cluster.k: {choice: [4]}}; null drops one."""
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
