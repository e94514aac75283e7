"""What a draw is asked for: which files, how many rows, by which settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.allocation import allocation_weights, spread


@dataclass(frozen=True)
class DrawFiles:
    """What a draw may read; Parquet, one file or many, joined by row id.

    Attributes:
        clusters: row_id, cluster, distance: these are the pool's rows.
        quality: row_id, quality; empty for no quality.
        pool: row_id, source, n_tokens.
        embeddings: row_id, embedding.
        removed: row_id of rows that cannot be drawn and are no part of their clusters.
        unscored: row_id of rows that cannot be drawn because they were not drawn for scoring; their clusters are as large.
    """

    clusters: list[str]
    quality: list[str] = field(default_factory=list)
    pool: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DrawPlan:
    """What one round draws.

    Attributes:
        config: the sampler and its settings.
        seed: of the draw; the same in every round, which makes rounds extend one another.
        budgets: ascending and nested, in `unit`; the last is what is drawn by the end of this round.
        unit: rows or tokens.
        allow_fewer: take what there is where that is less than a budget or quota.
        held_out: rows kept out of every round, where the pool has them to spare beside `reserved`.
        probe: rows of each cluster kept out likewise, for scoring; the budget and the held-out rows come first.
        reserved: rows that all rounds together draw.
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
    """Rows of each cluster to score where not all are, (k,) to (k,), at most its size.

    They are its share of the plan's budget and of the rows that are held out, each rounded up, and its probe: so many, that the
    draw then finds what it takes of each cluster.
    """
    held = np.array(sizes)
    shares = spread(allocation_weights(held, plan.config), held, plan.budgets[-1])
    held_out = plan.held_out * held / max(1, held.sum())
    # The allowance is for shares that are whole numbers but for their rounding.
    return np.minimum(np.ceil(shares - 1e-9) + np.ceil(held_out - 1e-9) + plan.probe, held).astype(np.int64)
