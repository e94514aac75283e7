"""The specification of a draw: its files, number of rows and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.allocation import allocation_weights, spread


@dataclass(frozen=True)
class DrawFiles:
    """Files that a draw may read; one or more Parquet files each, joined by row id.

    Attributes:
        clusters: row_id, cluster, distance; these rows form the pool.
        quality: row_id, quality; empty for no quality.
        pool: row_id, source, n_tokens.
        embeddings: row_id, embedding.
        removed: row_id of rows that cannot be drawn and do not count towards the size of their clusters.
        unscored: row_id of rows that cannot be drawn because they were not scored; they still count towards cluster sizes.
    """

    clusters: list[str]
    quality: list[str] = field(default_factory=list)
    pool: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DrawPlan:
    """The draw of one round.

    Attributes:
        config: the sampler and its settings.
        seed: seed of the draw; the same in every round, so that rounds extend one another.
        budgets: ascending and nested, in `unit`; the last is the total drawn by the end of this round.
        unit: rows or tokens.
        allow_fewer: draw as many as available if that is less than a budget or quota.
        held_out: rows kept out of every round, as far as the pool has more than `reserved`.
        probe: rows of each cluster also kept out, for scoring; the budget and the held-out rows take precedence.
        reserved: total number of rows drawn over all rounds.
        drawn: (k,) rows drawn per cluster in earlier rounds, or None in the first.
        weights: (k,) cluster weights, or None for `config.allocation` of the cluster sizes.
        targets: (k,) targets accumulated over earlier rounds, or None in the first.
    """

    config: SelectConfig
    seed: int
    budgets: list[int]
    unit: str = "rows"
    allow_fewer: bool = False
    held_out: int = 0
    probe: int = 0
    reserved: int = 0
    drawn: list[int] | None = None
    weights: list[float] | None = None
    targets: list[float] | None = None


def rows_to_score(sizes: Sequence[int], plan: DrawPlan) -> np.ndarray:
    """Rows to score in each cluster if not all are scored, (k,) to (k,), at most its size.

    The cluster's share of the plan's budget and of the held-out rows, each rounded up, plus its probe: enough for what the
    draw takes from each cluster.
    """
    held = np.array(sizes)
    shares = spread(allocation_weights(held, plan.config), held, plan.budgets[-1])
    held_out = plan.held_out * held / max(1, held.sum())
    # The tolerance is for shares that are whole numbers up to rounding.
    return np.minimum(np.ceil(shares - 1e-9) + np.ceil(held_out - 1e-9) + plan.probe, held).astype(np.int64)
