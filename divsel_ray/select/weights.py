"""Cluster weights updated by what the model learned (Yu et al. 2024, Eq. 4-6).

Eq. 4: `S_i = score(x, y_gold) - score(x, y_generated)`; Eq. 5: `s_j` is its mean over the scored rows of cluster j.
Eq. 6 as printed, `w_j s_j / sum s`, neither sums to one nor preserves the order for negative scores. The default here is
`w_j exp((s^_j - m) / tau)`, with S in units of its pooled standard deviation and `s^_j` the cluster mean, shrunk towards the
overall mean m according to its noise (`gaps.py`). `guards.py` bounds the result.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from divsel_ray.config import WeightsConfig
from divsel_ray.select.gaps import ClusterGaps, LengthTrend, RowGaps, cluster_gaps, remove_length, shuffled_clusters
from divsel_ray.select.guards import guard_weights

_LARGEST_EXPONENT = 50.0


@dataclass(frozen=True)
class WeightUpdate:
    """How a round changes the weights, and why.

    Attributes:
        before: (k,) weights used by the round.
        after: (k,) weights of the next round.
        guard: (k,) what bounded a cluster's weight: "floor", "ceiling", "step"; or kept it: "disagreement" of the two signals,
            "unscored", "exhausted" (no row left to draw); or None.
        gaps: gaps by cluster, as used.
        second: gaps of the second signal, or None without one.
        source: (k,) the cluster whose gaps each got: itself, unless shuffled.
        trend: effect of length on the gaps, whether or not it was removed.
    """

    before: np.ndarray
    after: np.ndarray
    guard: np.ndarray
    gaps: ClusterGaps
    second: ClusterGaps | None
    source: np.ndarray
    trend: LengthTrend

    def facts(self, config: WeightsConfig) -> dict[str, Any]:
        """Summary of the update. Gap, unit and length slope are in the scorer's units, `between` in squared pooled units."""
        agreement = None if self.second is None else agreeing(self.gaps, self.second)[self.gaps.scored > 0]
        return {
            "weights": self.after.tolist(),
            "moved": float(np.abs(self.after - self.before).sum() / 2),
            "between": self.gaps.between,
            "direction": config.direction,
            "overall_gap": self.gaps.overall * self.gaps.unit,
            "unit": self.gaps.unit,
            "scored_rows": int(self.gaps.scored.sum()),
            "scored_clusters": int((self.gaps.scored > 0).sum()),
            "length_slope": self.trend.slope,
            "length_share": self.trend.share,
            "second_between": None if self.second is None else self.second.between,
            "agreement": None if agreement is None or not len(agreement) else float(agreement.mean()),
            "shuffled": config.shuffled,
            "guards": dict(sorted(Counter(name for name in self.guard.tolist() if name).items())),
        }


def move_weights(
    before: np.ndarray, rows: RowGaps, exhausted: np.ndarray, config: WeightsConfig, seed: int, number: int
) -> WeightUpdate:
    """The next round's weights from the gaps of single rows.

    Args:
        before: (k,) this round's weights, summing to 1.
        rows: the scored rows; never held-out ones.
        exhausted: (k,) clusters without a row left to draw.
        config: update rule, controls and guards.
        seed: seed of the job; only the shuffled control depends on it.
        number: number of the round; likewise.
    """
    k = len(before)
    controlled, trend = remove_length(rows.gap, rows.longer)
    gaps = cluster_gaps(controlled if config.length_control else rows.gap, rows.cluster, k, shrinkage=config.shrinkage)
    second = None
    if rows.second is not None:
        values = remove_length(rows.second, rows.longer)[0] if config.length_control else rows.second
        second = cluster_gaps(values, rows.cluster, k, shrinkage=config.shrinkage)
    source = shuffled_clusters(gaps.scored, seed, number) if config.shuffled else np.arange(k)
    gaps, second = gaps.given_to(source), second.given_to(source) if second else None
    after, guard = update_weights(before, gaps, config, second, exhausted)
    return WeightUpdate(before, after, guard, gaps, second, source, trend)


def update_weights(
    before: np.ndarray,
    gaps: ClusterGaps,
    config: WeightsConfig,
    second: ClusterGaps | None = None,
    exhausted: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The next round's weights, (k,) summing to 1, and what bounded each, (k,) as in `WeightUpdate.guard`.

    Movable clusters are renormalised among themselves to their total mass. The others keep their weight unless the ceiling
    forces a change: clusters without a scored row, without a row left to draw (the draw spreads their share over the others),
    or with disagreeing signals. Gaps that do not distinguish clusters change nothing.

    Args:
        before: (k,) this round's weights, summing to 1.
        gaps: from `cluster_gaps`.
        config: update rule, direction, temperature and guards.
        second: gaps of a second signal; a cluster moves only if both signals agree on the direction.
        exhausted: (k,) clusters without a row left to draw; None for none.
    """
    spent = np.zeros(len(before), bool) if exhausted is None else exhausted
    agreed = agreeing(gaps, gaps if second is None else second)
    movable = ~spent & agreed
    wanted = before.copy()
    sign = 1.0 if config.direction == "lagging" else -1.0
    effect, mean = sign * gaps.effect[movable], sign * gaps.shrunk[movable]
    if effect.any():
        factors = _factors(effect, mean, config)
        wanted[movable] = factors if config.update == "memoryless" else before[movable] * factors
    after, guard = guard_weights(wanted, before, movable, ~spent, config)
    unheld = np.array([bound is None for bound in guard.tolist()], dtype=bool)
    for name, kept in (("disagreement", ~agreed), ("unscored", gaps.scored == 0), ("exhausted", spent)):
        guard[kept & unheld] = name
    return after, guard


def agreeing(gaps: ClusterGaps, second: ClusterGaps) -> np.ndarray:
    """(k,) whether both signals scored a cluster and put it on the same side of their overall means."""
    both = (gaps.scored > 0) & (second.scored > 0)
    return np.asarray(both & (np.sign(gaps.effect) == np.sign(second.effect)))


def _factors(effect: np.ndarray, mean: np.ndarray, config: WeightsConfig) -> np.ndarray:
    if config.update == "paper":
        # Eq. 6 needs positive scores; others are shifted so that the lowest keeps a hundredth of a standard deviation.
        return mean if mean.min() > 0 else np.asarray(effect - effect.min() + 0.01)
    return np.exp(np.clip(effect / config.tau, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))


def explain_weights(sizes: list[int], update: WeightUpdate) -> list[dict[str, Any]]:
    """One plain row per cluster: its gaps in units of their pooled standard deviation, its weight, and what bounded it.

    Args:
        sizes: (k,) number of rows of each cluster.
        update: from `move_weights`.
    """
    k = len(sizes)
    columns = {
        "cluster": np.arange(k),
        "size": np.array(sizes),
        "scored": update.gaps.scored,
        "mean_gap": update.gaps.mean,
        "standard_error": update.gaps.standard_error,
        "shrunk_gap": update.gaps.shrunk,
        "second_gap": np.full(k, np.nan) if update.second is None else update.second.mean,
        "gaps_of": update.source,
        "before": update.before,
        "after": update.after,
        "guard": update.guard,
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*(c.tolist() for c in columns.values()), strict=True)]
    return [{name: None if _unknown(value) else value for name, value in row.items()} for row in rows]


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
