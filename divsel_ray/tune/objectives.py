"""Figures that trials are compared by, cheapest first: those of the selection, the clusters, the rounds and benchmarks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from divsel_ray.config import Config
from divsel_ray.config.tuning import TuningConfig
from divsel_ray.errors import InputError
from divsel_ray.report.records import StageRecord, number
from divsel_ray.store import read_json

Mode = Literal["max", "min"]
EVALUATE = "evaluate:"
SILHOUETTE = "simplified_silhouette"


@dataclass(frozen=True)
class Figure:
    """A figure of a trial.

    Attributes:
        mode: whether higher or lower is better.
        meaning: short description.
        of: what it is computed for: each round, the selection, the clusters, or a benchmark.
    """

    mode: Mode
    meaning: str
    of: Literal["round", "selection", "clusters", "benchmark"]


FIGURES = {
    "clusters_covered": Figure("max", "share of the clusters with a selected row", "selection"),
    "cluster_entropy": Figure("max", "evenness of the selection over the clusters", "selection"),
    "nearest_distance": Figure("max", "mean distance of selected rows to the nearest other one", "selection"),
    "copies": Figure("min", "share of selected rows with a near copy among them", "selection"),
    "vendi": Figure("max", "Vendi score of the selection", "selection"),
    SILHOUETTE: Figure("max", "simplified silhouette of all rows", "clusters"),
    "held_out_loss": Figure("min", "loss on held-out rows, nats per token", "round"),
    "train_loss": Figure("min", "mean training loss, nats per token", "round"),
    "held_out_gap": Figure("min", "how much higher the reference answers of held-out rows are rated than the model's", "round"),
    "mean_gap": Figure("min", "the same for the scored rows", "round"),
    "held_out_reward": Figure("max", "mean reward of the model's answers to held-out prompts", "round"),
}
_HELD_OUT = ("held_out_loss", "held_out_gap", "held_out_reward")
_DEPENDS = {
    "vendi": ("budget",),
    "clusters_covered": ("budget", "cluster.k"),
    "cluster_entropy": ("budget", "cluster.k"),
    "nearest_distance": ("budget",),
    "copies": ("budget",),
}
"""Settings that change a figure by themselves, regardless of how good the rows are."""
_OF_ROWS = ("seed.", "pool.", "clean.", "select.include.", "select.exclude.", "select.missing.", "refine.held_out.")
_NOT_OF_ROWS = ("pool.tokenizer", "pool.partition_bytes", "pool.max_bad_rows", "pool.score_column")
"""Settings and sections that decide which rows exist and can be held out; then the exceptions within these sections."""
_PERHAPS_LESS = re.compile(
    r"perplexity|bits_per_byte|brier|wikitext|lambada|paloma|uncheatable|crows_pairs|toxicity|bias|"
    r"(^|_)(pile|c4|loss|ppl|ter|wer|cer)(_|$)",
    re.IGNORECASE,
)
"""Names of benchmark metrics for which lower is better, and of tasks whose first metric is one."""


def figure_of(name: str) -> Figure:
    """The figure with this name.

    Raises:
        InputError: the name is unknown.
    """
    if name.startswith(EVALUATE) and name != EVALUATE:
        return Figure("max", f"benchmark {name.removeprefix(EVALUATE)} by the last round's model", "benchmark")
    if name not in FIGURES:
        raise InputError(f"objective or measure {name!r}: expected one of {', '.join(FIGURES)}, or {EVALUATE}TASK")
    return FIGURES[name]


def mode_of(tuning: TuningConfig) -> Mode:
    """Whether the best trial has the highest or the lowest objective."""
    return tuning.mode or figure_of(tuning.objective).mode


def guesses_mode(tuning: TuningConfig) -> bool:
    """Whether higher is only assumed to be better, because the objective is a benchmark and no mode is set."""
    return tuning.mode is None and figure_of(tuning.objective).of == "benchmark"


def figures_wanted(tuning: TuningConfig) -> list[str]:
    """The objective and the additional measures."""
    return list(dict.fromkeys([tuning.objective, *tuning.measures]))


def check_figures(tuning: TuningConfig, configs: Sequence[Config]) -> None:
    """Raise on figures that trials will not have, an objective of unknown direction, or a scheduler that cannot compare trials.

    Raises:
        InputError: the message names the setting to change.
    """
    for name in figures_wanted(tuning):
        of = figure_of(name).of
        for config in configs:
            if of in ("round", "benchmark") and config.refine is None:
                raise InputError(f"{name}: only a job with a `refine` section trains a model; add one, or choose another figure")
            by_perplexity = config.reward is not None and config.reward.perplexity is not None
            if name == tuning.objective == "held_out_reward" and by_perplexity and tuning.mode is None:
                raise InputError(
                    "objective held_out_reward: higher is not better with reward.perplexity; set mode, or use held_out_loss"
                )
            if name in _HELD_OUT and config.refine is not None and not config.refine.held_out:
                raise InputError(f"{name}: needs held-out rows; set refine.held_out")
    if guesses_mode(tuning) and _PERHAPS_LESS.search(tuning.objective.rpartition(":")[2]):
        raise InputError(f"objective {tuning.objective}: lower may be better for this benchmark; set mode to min or max")
    if tuning.scheduler == "asha":
        _check_comparable(tuning)


def _check_comparable(tuning: TuningConfig) -> None:
    if figure_of(tuning.objective).of != "round":
        of_rounds = ", ".join(name for name, figure in FIGURES.items() if figure.of == "round")
        raise InputError(
            f"scheduler asha: {tuning.objective} is not known after each round; use one of {of_rounds}, or scheduler none"
        )
    for place in ("budget", "refine.rounds"):
        if place in tuning.search:
            raise InputError(
                f"scheduler asha: trials with different {place} select different numbers of rows per round and cannot "
                f"be compared; remove {place} from the search, or use scheduler none"
            )


def cautions(tuning: TuningConfig) -> list[str]:
    """Caveats for comparing the trials, one line each."""
    found = [
        f"{name} also depends directly on {place}, which varies here: do not use it to compare trials that differ in it"
        for name in figures_wanted(tuning)
        for place in _DEPENDS.get(name, ())
        if place in tuning.search
    ]
    rewarded = [name for name in figures_wanted(tuning) if name in ("held_out_gap", "mean_gap", "held_out_reward")]
    if rewarded and any(place.split(".")[0] in ("reward", "pool", "clean", "seed") for place in tuning.search):
        found.append(f"{rewarded[0]} is in units of the reward model, which varies between the trials")
    if any(name in _HELD_OUT for name in figures_wanted(tuning)) and rows_by(tuning):
        found.append(f"held-out rows vary here with {', '.join(rows_by(tuning))}, so figures also differ because of the rows")
    return found


def rows_by(tuning: TuningConfig) -> list[str]:
    """Settings that vary in this search and decide which rows a job uses, so that figures also differ because of the rows."""
    return [place for place in tuning.search if f"{place}.".startswith(_OF_ROWS) and place not in _NOT_OF_ROWS]


def of_selection(stages: Mapping[str, StageRecord], name: str) -> float | None:
    """A figure of the selection, None if it was not measured."""
    stage = stages.get("diversity")
    return None if stage is None else number(read_json(stage.file("diversity.json"))["selection"][name])
