"""What trials are compared by, from the cheapest on: figures of the selection, of the clusters, of the rounds, of benchmarks."""

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
        mode: whether more of it or less is better.
        meaning: in a few words.
        of: what it is known of: each round, the selection, the clusters, or a benchmark.
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
    "held_out_gap": Figure("min", "how much higher held-out answers of the data are rated than the model's", "round"),
    "mean_gap": Figure("min", "likewise of the scored rows", "round"),
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
"""Settings that move a figure by themselves, whatever the rows are worth."""
_OF_ROWS = ("seed.", "pool.", "clean.", "select.include.", "select.exclude.", "select.missing.", "refine.held_out.")
_NOT_OF_ROWS = ("pool.tokenizer", "pool.partition_bytes", "pool.max_bad_rows", "pool.score_column")
"""Settings, and sections of them, that decide which rows there are and can be held out; and those of a section that do not."""
_PERHAPS_LESS = re.compile(
    r"perplexity|bits_per_byte|brier|wikitext|lambada|paloma|uncheatable|crows_pairs|toxicity|bias|"
    r"(^|_)(pile|c4|loss|ppl|ter|wer|cer)(_|$)",
    re.IGNORECASE,
)
"""Names of benchmarks' metrics, and of tasks by their first metric, less of which is better."""


def figure_of(name: str) -> Figure:
    """The figure of this name.

    Raises:
        InputError: there is none.
    """
    if name.startswith(EVALUATE) and name != EVALUATE:
        return Figure("max", f"benchmark {name.removeprefix(EVALUATE)} by the last round's model", "benchmark")
    if name not in FIGURES:
        raise InputError(f"objective or measure {name!r}: expected one of {', '.join(FIGURES)}, or {EVALUATE}TASK")
    return FIGURES[name]


def mode_of(tuning: TuningConfig) -> Mode:
    """Whether the best trial has most or least of the objective."""
    return tuning.mode or figure_of(tuning.objective).mode


def guesses_mode(tuning: TuningConfig) -> bool:
    """Whether more of the objective is taken for better because it is a benchmark, and nothing else is said."""
    return tuning.mode is None and figure_of(tuning.objective).of == "benchmark"


def figures_wanted(tuning: TuningConfig) -> list[str]:
    """The objective and the further measures."""
    return list(dict.fromkeys([tuning.objective, *tuning.measures]))


def check_figures(tuning: TuningConfig, configs: Sequence[Config]) -> None:
    """Refuse figures that the trials will not have, an objective of unknown direction, and a scheduler that cannot compare.

    Raises:
        InputError: says which setting to change.
    """
    for name in figures_wanted(tuning):
        of = figure_of(name).of
        for config in configs:
            if of in ("round", "benchmark") and config.refine is None:
                raise InputError(f"{name}: only a job with a `refine` section trains a model; add one, or take another figure")
            by_perplexity = config.reward is not None and config.reward.perplexity is not None
            if name == tuning.objective == "held_out_reward" and by_perplexity and tuning.mode is None:
                raise InputError(
                    "objective held_out_reward: of reward.perplexity more is stranger; set mode, or take held_out_loss"
                )
            if name in _HELD_OUT and config.refine is not None and not config.refine.held_out:
                raise InputError(f"{name}: needs held-out rows; set refine.held_out")
    if guesses_mode(tuning) and _PERHAPS_LESS.search(tuning.objective.rpartition(":")[2]):
        raise InputError(f"objective {tuning.objective}: of this benchmark less may be better; set mode to min or max")
    if tuning.scheduler == "asha":
        _check_comparable(tuning)


def _check_comparable(tuning: TuningConfig) -> None:
    if figure_of(tuning.objective).of != "round":
        of_rounds = ", ".join(name for name, figure in FIGURES.items() if figure.of == "round")
        raise InputError(f"scheduler asha: {tuning.objective} is not known of each round; take one of {of_rounds}, or none")
    for place in ("budget", "refine.rounds"):
        if place in tuning.search:
            raise InputError(
                f"scheduler asha: trials of different {place} have not selected as many rows after a round and cannot be "
                f"compared there; leave {place} out of the search, or take scheduler none"
            )


def cautions(tuning: TuningConfig) -> list[str]:
    """What to keep in mind when trials are compared, a line each."""
    found = [
        f"{name} also depends on {place} alone, which varies here: trials that differ in it are not told apart by it"
        for name in figures_wanted(tuning)
        for place in _DEPENDS.get(name, ())
        if place in tuning.search
    ]
    rewarded = [name for name in figures_wanted(tuning) if name in ("held_out_gap", "mean_gap", "held_out_reward")]
    if rewarded and any(place.split(".")[0] in ("reward", "pool", "clean", "seed") for place in tuning.search):
        found.append(f"{rewarded[0]} is in units of the reward model, which varies here with the settings")
    if any(name in _HELD_OUT for name in figures_wanted(tuning)) and rows_by(tuning):
        found.append(f"held-out rows vary here with {', '.join(rows_by(tuning))}, so that figures differ by the rows too")
    return found


def rows_by(tuning: TuningConfig) -> list[str]:
    """Settings that vary here and decide which rows a job stands on: of different ones, figures differ by the rows too."""
    return [place for place in tuning.search if f"{place}.".startswith(_OF_ROWS) and place not in _NOT_OF_ROWS]


def of_selection(stages: Mapping[str, StageRecord], name: str) -> float | None:
    """A figure of the selection."""
    stage = stages.get("diversity")
    return None if stage is None else number(read_json(stage.file("diversity.json"))["selection"][name])
