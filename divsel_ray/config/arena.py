"""Settings of an arena: the data and training recipe of one job, and the samplers compared on them at equal budget."""

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
"""With fewer seeds, a standard deviation over seeds is meaningless."""
_OTHER_TEXTS = "an arena holds rows out of the pool and spoils others, so values computed beforehand do not match its rows"


class EvaluationRows(Section):
    """Rows that losses are measured on; no contender ever sees them."""

    rows: Annotated[list[str], BeforeValidator(as_list)] = Field(
        [], description="Files of rows, as in pool.data; rows also in the pool are removed from it. Default: a share of the pool."
    )
    share: float = Field(0.1, gt=0, lt=1, description="Share of the pool to hold out for evaluation if no rows are given.")
    max_rows: int = Field(500, ge=2, description="Maximum number of rows; they are chosen by a hash of seed and row id.")
    label: str | None = Field(
        None,
        description="Input column with a row's task; used for measurement only, no contender sees it. Default: the file's name.",
    )
    batch_tokens: int = Field(1024, ge=16, description="Padded tokens per batch.")


class SpoilConfig(Section):
    """Faults that the arena puts into the pool, to see which samplers select spoiled rows."""

    share: float = Field(0.15, gt=0, lt=1, description="Share of the pool's completions that are replaced.")
    kinds: list[Fault] = Field(
        ["other", "truncated", "shuffled"],
        min_length=1,
        description="other: another row's completion; truncated: the first half of the words; shuffled: the words in random "
        "order. A one-word completion is always replaced by another row's.",
    )


class ArenaConfig(Section):
    """Contenders of an arena, their seeds, and the rows they are measured on."""

    samplers: list[str] = Field(description="Static contenders, named as in `divsel samplers`; random always takes part.")
    iterative: list[Feedback] = Field(
        [],
        description="Iterative contenders, named by the direction of their feedback (refine.weights.direction). With any of "
        "them, two controls always take part: shuffled feedback, and random selection trained for as long.",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(description="Each contender runs once per seed; three or more.")
    clusters: Literal["per_seed", "once"] = Field(
        "per_seed",
        description="per_seed: cluster again for each seed, as part of the variation; once: use the job's seed for all.",
    )
    evaluation: EvaluationRows = EvaluationRows()
    spoil: SpoilConfig | None = Field(None, description="Leave out to use the pool unchanged.")
    bootstrap: int = Field(2000, ge=100, description="Bootstrap resamples of seeds and evaluation rows per interval.")
    parallel: int = Field(
        1,
        ge=1,
        description="Static trainings to run at a time, each with the resources of one training worker; iterative contenders run "
        "one after another.",
    )

    @model_validator(mode="after")
    def _enough_seeds(self) -> ArenaConfig:
        if len(set(self.seeds)) < FEWEST_SEEDS:
            raise ValueError(
                f"seeds {self.seeds}: expected {FEWEST_SEEDS} or more different seeds; fewer cannot tell a sampler from luck"
            )
        for name in ("seeds", "samplers", "iterative"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {values}: contains a duplicate; remove it")
        return self


@dataclass(frozen=True)
class Arena:
    """An arena's settings, and the job that all its cells are variants of; the job has a `refine` section."""

    settings: ArenaConfig
    job: Config

    @property
    def refine(self) -> RefineConfig:
        """The training recipe, and the rounds of iterative contenders."""
        if self.job.refine is None:
            raise RuntimeError("an arena's job must have a `refine` section")
        return self.job.refine

    def without_rounds(self, job: Config) -> Config:
        """Return the job without `refine` if no contender is iterative, so that nothing that only rounds need is required."""
        return job if self.settings.iterative else job.model_copy(update={"refine": None})


def load_arena(path: str | Path, overrides: Sequence[str] = ()) -> Arena:
    """Read an arena's YAML and apply `key.path=value` overrides; keys of the job begin with `job.`.

    Raises:
        InputError: the file is missing, is not YAML, or contains an unknown key or an invalid value.
    """
    path = Path(path)
    values = read_around_job(path, overrides)
    job_values = values.pop("job", None)
    if not isinstance(job_values, dict):
        raise InputError(f"{path}: job: expected a job's configuration, or the path of a file that contains it")
    settings = build_section(ArenaConfig, values, str(path), "arena")
    job = _job(job_values, iterative=bool(settings.iterative), name=f"{path}: job")
    _check(settings, job, str(path))
    return Arena(settings, job)


def _job(values: dict[str, Any], *, iterative: bool, name: str) -> Config:
    """Build the job. Without iterative contenders it needs no reward and may have a token budget, despite its `refine`."""
    if not isinstance(values.get("refine"), dict):
        raise InputError(f"{name}.refine: missing; its `train` section is the training recipe of every contender")
    if iterative:
        return build_config(values, name)
    rest = {key: value for key, value in values.items() if key != "refine"}
    recipe = build_section(RefineConfig, values["refine"], f"{name}.refine", "refine")
    return build_config(rest, name).model_copy(update={"refine": recipe})


def _check(settings: ArenaConfig, job: Config, name: str) -> None:
    """Raise InputError, in one line, if the job has a setting that an arena does not support."""
    kind, _, scores = job.quality.source.partition(":")
    scores = scores if kind == "given" else ""
    for setting, given, why in (
        ("job.nested", bool(job.nested), "an arena has one budget"),
        ("job.select.quotas", bool(job.select.quotas), "an arena rewrites the pool, and the names of its files are lost"),
        ("job.select.include", job.select.include, "rows given to every contender do not distinguish contenders"),
        ("job.select.exclude", job.select.exclude, "remove those rows from pool.data instead"),
        ("job.embed.given", job.embed.given and (settings.spoil or job.embed.given.endswith(".npy")), _OTHER_TEXTS),
        ("job.quality.source given", scores and (settings.spoil or scores.endswith(".npy")), _OTHER_TEXTS),
    ):
        if given:
            raise InputError(f"{name}: {setting}: {why}; remove this setting")
