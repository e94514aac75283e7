"""Settings of an arena: one job's data and recipe, and every sampler that competes on them at the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from divsel_ray.config.base import Section, as_list
from divsel_ray.config.files import build_config, build_section, read_around_job
from divsel_ray.config.job import Config
from divsel_ray.config.refinement import RefineConfig
from divsel_ray.errors import InputError

Feedback = Literal["lagging", "learned", "shuffled"]
Fault = Literal["other", "truncated", "shuffled"]
FEWEST_SEEDS = 3
"""Below this, a spread over seeds says nothing."""
_OTHER_TEXTS = "an arena holds rows out of the pool and spoils some, which given numbers do not know of"


class EvaluationRows(Section):
    """Which rows the losses are measured on; no contender ever sees them."""

    rows: Annotated[list[str], BeforeValidator(as_list)] = Field(
        [], description="Files of rows, as pool.data; those that the pool holds too leave the pool. Default: a share of the pool."
    )
    share: float = Field(0.1, gt=0, lt=1, description="Share of the pool that is held out for it, where no rows are given.")
    max_rows: int = Field(500, ge=2, description="Rows at most, chosen by a hash of seed and row id.")
    label: str | None = Field(
        None,
        description="Column of the input that names a row's task, for measuring only: no contender sees it. Default: the file.",
    )
    batch_tokens: int = Field(1024, ge=16, description="Padded tokens per batch.")


class SpoilConfig(Section):
    """Faults that the arena puts into the pool itself, to see who takes them."""

    share: float = Field(0.15, gt=0, lt=1, description="Share of the pool's completions that are replaced.")
    kinds: list[Fault] = Field(
        ["other", "truncated", "shuffled"],
        min_length=1,
        description="other: another row's completion; truncated: the first half of its words; shuffled: its words in any order. "
        "A completion of one word gets another row's.",
    )


class ArenaConfig(Section):
    """Who competes, how often, and on what they are measured."""

    samplers: list[str] = Field(description="Static contenders, of those that `divsel samplers` lists; random always takes part.")
    iterative: list[Feedback] = Field(
        [],
        description="Iterative contenders, by the direction of their feedback (refine.weights.direction). With any of them, the "
        "control with shuffled feedback and random trained as long as they are always take part.",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(description="Each contender runs once with each; three or more.")
    clusters: Literal["per_seed", "once"] = Field(
        "per_seed", description="Cluster anew with each seed, which is part of what varies, or once with the job's."
    )
    evaluation: EvaluationRows = EvaluationRows()
    spoil: SpoilConfig | None = Field(None, description="Leave out for the pool as it is.")
    bootstrap: int = Field(2000, ge=100, description="Resamples of seeds and evaluation rows behind each interval.")
    parallel: int = Field(
        1, ge=1, description="Cells of one draw at a time, each in the place of one training worker; iterative ones take turns."
    )

    @model_validator(mode="after")
    def _enough_seeds(self) -> ArenaConfig:
        if len(set(self.seeds)) < FEWEST_SEEDS:
            raise ValueError(
                f"seeds {self.seeds}: expected {FEWEST_SEEDS} or more different ones; fewer cannot tell a sampler from luck"
            )
        for name in ("seeds", "samplers", "iterative"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {values}: one of them is there twice")
        return self


@dataclass(frozen=True)
class Arena:
    """An arena's settings and the job that all of its cells are variants of; the job has a `refine` section."""

    settings: ArenaConfig
    job: Config

    @property
    def refine(self) -> RefineConfig:
        """The recipe of the trainings, and the rounds of iterative contenders."""
        if self.job.refine is None:
            raise RuntimeError("an arena's job has a recipe")
        return self.job.refine

    def without_rounds(self, job: Config) -> Config:
        """A job of the arena without its rounds where no contender has any: what only rounds need is not needed then."""
        return job if self.settings.iterative else job.model_copy(update={"refine": None})


def load_arena(path: str | Path, overrides: Sequence[str] = ()) -> Arena:
    """Read an arena's YAML and apply `key.path=value` overrides; the job's keys begin with `job.`.

    Raises:
        InputError: the file is missing, is not YAML, or holds a key or value that is not allowed.
    """
    path = Path(path)
    values = read_around_job(path, overrides)
    job_values = values.pop("job", None)
    if not isinstance(job_values, dict):
        raise InputError(f"{path}: job: expected a job's configuration, or the path of its file")
    settings = build_section(ArenaConfig, values, str(path), "arena")
    job = _job(job_values, iterative=bool(settings.iterative), name=f"{path}: job")
    _check(settings, job, str(path))
    return Arena(settings, job)


def _job(values: dict[str, Any], *, iterative: bool, name: str) -> Config:
    """The job. Without iterative contenders it needs no reward, and its budget may count tokens, for all that it has a recipe."""
    if not isinstance(values.get("refine"), dict):
        raise InputError(f"{name}.refine: needed for its `train` section, the recipe of every contender's training")
    if iterative:
        return build_config(values, name)
    rest = {key: value for key, value in values.items() if key != "refine"}
    recipe = build_section(RefineConfig, values["refine"], f"{name}.refine", "refine")
    return build_config(rest, name).model_copy(update={"refine": recipe})


def _check(settings: ArenaConfig, job: Config, name: str) -> None:
    """Refuse what an arena cannot do, in one line."""
    kind, _, scores = job.quality.source.partition(":")
    scores = scores if kind == "given" else ""
    for setting, given, why in (
        ("job.nested", bool(job.nested), "an arena has one budget"),
        ("job.select.quotas", bool(job.select.quotas), "an arena writes the pool anew, without its files' names"),
        ("job.select.include", job.select.include, "rows that every contender is given tell nothing of it"),
        ("job.select.exclude", job.select.exclude, "leave those rows out of pool.data instead"),
        ("job.embed.given", job.embed.given and (settings.spoil or job.embed.given.endswith(".npy")), _OTHER_TEXTS),
        ("job.quality.source given", scores and (settings.spoil or scores.endswith(".npy")), _OTHER_TEXTS),
    ):
        if given:
            raise InputError(f"{name}: {setting}: {why}; leave it out")
