"""The results of each round of a run. The amount of data read grows with the budget and k, not with the pool."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq

from divsel_ray.config import Config
from divsel_ray.report.records import Mean, StageRecord, known, mean_of, number, round_numbers
from divsel_ray.stage_names import kind_of, round_of
from divsel_ray.store import read_json


@dataclass(frozen=True)
class Training:
    """One fine-tuning; losses are in nats per completion token, None without held-out rows."""

    steps: int
    losses: Sequence[float]
    held_out_loss_base: float | None
    held_out_loss: float | None


@dataclass(frozen=True)
class Update:
    """Change of the cluster weights in one round.

    Attributes:
        after: (k,) weights after the round.
        moved: share of the weight that changed cluster.
        told_apart: False if gaps differed between clusters no more than by chance.
        guards: number of clusters affected by each guard: step, floor, ceiling, disagreement, unscored, exhausted.
        scored: number of scored rows over all clusters.
        clusters_scored: number of clusters with a scored row.
        spread: standard deviation of the clusters' mean gaps, in pooled standard deviations of the gap; None for fewer than two
            clusters.
        error: root mean square of their standard errors, in the same unit; None if rows do not differ within any cluster.
        shuffled: whether the gaps were permuted among clusters.
        agreement: share of the scored clusters on whose direction the second signal agreed; None without one.
        length_slope: gap per token by which the data's answer is longer than the model's (least squares); None if not measured.
        length_share: share of the gaps' variance explained by the difference in length.
    """

    after: Sequence[float]
    moved: float
    told_apart: bool
    guards: Mapping[str, int] = field(default_factory=dict)
    scored: int = 0
    clusters_scored: int = 0
    spread: float | None = None
    error: float | None = None
    shuffled: bool = False
    agreement: float | None = None
    length_slope: float | None = None
    length_share: float | None = None


@dataclass(frozen=True)
class Round:
    """One round: total and new rows, the (k,) weights used to draw them, and the results. Round 0 is the untuned model.

    `new_by_cluster` (k,) counts the new rows; `held_out_reward` is the mean reward of the answers to held-out prompts.
    """

    number: int
    rows: int
    new: int
    weights: Sequence[float]
    seconds: float
    training: Training | None = None
    gap: Mean | None = None
    held_out_gap: Mean | None = None
    update: Update | None = None
    new_by_cluster: Sequence[int] = ()
    held_out_reward: Mean | None = None


def read_gap(score: StageRecord, *, held_out: bool, column: str = "gap") -> Mean | None:
    """Mean reward gap, or another column, of the held-out or of the other rows; None if no such row was scored."""
    rows = pq.read_table(score.file("gaps.parquet"), columns=[column, "held_out"]).to_pylist()
    return mean_of(row[column] for row in rows if row["held_out"] == held_out)


def read_rounds(stages: Mapping[str, StageRecord], config: Config) -> list[Round]:
    """Read all rounds, in order.

    Raises:
        InputError: files of the run are missing.
    """
    rounds: list[Round] = []
    drawn = np.zeros(1, int)
    for one in round_numbers(stages):
        mine = {kind_of(name): stage for name, stage in stages.items() if round_of(name) == one}
        before, drawn = drawn, np.array(mine["draw"].facts.get("drawn", [0]))
        rounds.append(_round(one, mine, config, (drawn - before).tolist()))
    return rounds


def read_training(stage: StageRecord) -> Training:
    """Read the losses of a fine-tuning.

    Raises:
        InputError: the file of losses is missing.
    """
    lines = stage.file("training/losses.jsonl").read_text(encoding="utf-8").splitlines()
    return Training(
        steps=stage.facts["steps"],
        losses=[float(json.loads(line)["loss"]) for line in lines],
        held_out_loss_base=number(stage.facts["held_out_loss_base"]),
        held_out_loss=number(stage.facts["held_out_loss"]),
    )


def _round(at: int, mine: Mapping[str, StageRecord], config: Config, new_by_cluster: list[int]) -> Round:
    draw, score = mine["draw"].facts, mine.get("score")
    return Round(
        number=at,
        rows=draw["rows"],
        new=draw["new"],
        weights=draw["weights"],
        seconds=sum(stage.seconds for stage in mine.values()),
        training=read_training(mine["train"]) if "train" in mine else None,
        gap=read_gap(score, held_out=False) if score else None,
        held_out_gap=read_gap(score, held_out=True) if score else None,
        update=_update(mine["weights"], config) if "weights" in mine else None,
        new_by_cluster=new_by_cluster,
        held_out_reward=read_gap(score, held_out=True, column="generated") if score else None,
    )


def _update(stage: StageRecord, config: Config) -> Update:
    assert config.refine is not None
    rule, facts, clusters = config.refine.weights, stage.facts, read_json(stage.file("weights.json"))
    means = known(entry.get("mean_gap") for entry in clusters)
    # Standard errors of zero, as in clusters with a single row, say nothing about the noise.
    errors = [error for error in known(entry.get("standard_error") for entry in clusters) if error > 0]
    return Update(
        after=facts["weights"],
        moved=facts["moved"],
        told_apart=not rule.shrinkage or facts["between"] > 0,
        guards=facts["guards"],
        scored=facts["scored_rows"],
        clusters_scored=facts["scored_clusters"],
        spread=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        error=math.sqrt(math.fsum(error**2 for error in errors) / len(errors)) if errors else None,
        shuffled=rule.shuffled,
        agreement=facts["agreement"],
        length_slope=facts["length_slope"],
        length_share=facts["length_share"],
    )
