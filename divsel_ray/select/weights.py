"""Cluster weights moved by what the model learned (Yu et al. 2024, Eq. 4-6).

Eq. 4: `S_i = score(x, y_gold) - score(x, y_generated)`; Eq. 5: `s_j` is its mean over the scored rows of cluster j.
Eq. 6 as printed, `w_j s_j / sum s`, neither sums to one nor keeps its order for negative scores. The default here is
`w_j exp((s^_j - m) / tau)`: S in units of its pooled standard deviation, and `s^_j` the cluster mean shrunk towards the
overall mean m by its noise, because six rows per cluster are mostly noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from divsel_ray.config import WeightsConfig


@dataclass(frozen=True)
class ClusterGaps:
    """Gaps by cluster, in units of the pooled standard deviation.

    Attributes:
        scored: (k,) rows scored.
        mean: (k,) mean gap s_j; NaN where no row was scored.
        standard_error: (k,) of the mean, from the pooled within-cluster variance (1 in these units).
        shrunk: (k,) s^_j; NaN where no row was scored.
        overall: m, the mean over all scored rows.
        unit: the pooled standard deviation that everything was divided by.
        between: estimated variance between clusters (can be negative: then the gaps tell clusters apart no better than chance).
    """

    scored: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray
    shrunk: np.ndarray
    overall: float
    unit: float
    between: float


def cluster_gaps(gaps: np.ndarray, cluster: np.ndarray, k: int, *, shrinkage: bool) -> ClusterGaps:
    """Means per cluster with their noise; one-way analysis of variance gives the variance within and between.

    Shrinkage: `s^_j = m + n_j / (n_j + kappa) (s_j - m)`, kappa = variance within / variance between; all means become m
    when the variance between is not positive.

    Args:
        gaps: (n,) S_i; rows with NaN (a scoring error) are left out.
        cluster: (n,) in 0..k-1.
        k: number of clusters.
        shrinkage: whether `shrunk` is shrunk or the plain mean.
    """
    valid = np.isfinite(gaps)
    gaps, cluster = gaps[valid], cluster[valid]
    scored = np.bincount(cluster, minlength=k)
    means = np.bincount(cluster, gaps, minlength=k) / np.maximum(scored, 1)
    overall = float(gaps.mean()) if len(gaps) else 0.0
    used = int((scored > 0).sum())
    within = float(((gaps - means[cluster]) ** 2).sum() / (len(gaps) - used)) if len(gaps) > used else 0.0
    unit = np.sqrt(within) if within > 0 else float(gaps.std()) if len(gaps) and gaps.std() > 0 else 1.0
    between = _variance_between(scored, means, overall, within)
    pull = scored / np.maximum(scored + within / between, 1e-9) if between > 0 else np.zeros(k)
    shrunk = overall + (pull if shrinkage else 1.0) * (means - overall)
    seen = scored > 0
    return ClusterGaps(
        scored=scored,
        mean=np.where(seen, means / unit, np.nan),
        standard_error=np.where(seen, np.sqrt(within / np.maximum(scored, 1)) / unit, np.nan),
        shrunk=np.where(seen, shrunk / unit, np.nan),
        overall=overall / unit,
        unit=float(unit),
        between=between / unit**2,
    )


def _variance_between(scored: np.ndarray, means: np.ndarray, overall: float, within: float) -> float:
    """Random-effects estimate (MSB - MSW) / n0 with n0 the effective rows per cluster (Searle 1971)."""
    used, total = int((scored > 0).sum()), float(scored.sum())
    if used < 2:
        return 0.0
    effective = (total - (scored**2).sum() / total) / (used - 1)
    mean_square = (scored * (means - overall) ** 2).sum() / (used - 1)
    return float((mean_square - within) / effective)


def update_weights(weights: np.ndarray, gaps: ClusterGaps, config: WeightsConfig) -> np.ndarray:
    """The next round's weights, (k,) summing to 1.

    Scored clusters are renormalised among themselves to the mass they had, so a cluster without a scored row keeps its
    weight. Then no scored weight moves by more than `max_step`, nor below `floor / k`.

    Args:
        weights: (k,) this round's weights, summing to 1.
        gaps: from `cluster_gaps`.
        config: update rule, direction, temperature and guards.
    """
    seen = gaps.scored > 0
    if not seen.any():
        return weights.copy()
    sign = 1.0 if config.direction == "lagging" else -1.0
    factors = _factors(sign * (gaps.shrunk[seen] - gaps.overall), config)
    before, mass = weights[seen], weights[seen].sum()
    wanted = factors if config.update == "memoryless" else before * factors
    updated = weights.copy()
    updated[seen] = _within_guards(wanted / max(wanted.sum(), 1e-300) * mass, before, len(weights), config)
    return updated / updated.sum()


def _factors(centred: np.ndarray, config: WeightsConfig) -> np.ndarray:
    if config.update == "paper":
        # Eq. 6 needs positive scores: shifted so that the lowest keeps a hundredth of a standard deviation.
        return centred - centred.min() + 0.01
    return np.exp(np.clip(centred / config.tau, -50.0, 50.0))


def _within_guards(wanted: np.ndarray, before: np.ndarray, k: int, config: WeightsConfig) -> np.ndarray:
    """Scale `wanted` by the one factor at which, clipped to the guards, it keeps its mass (found by bisection)."""
    mass = wanted.sum()
    low = np.full(len(before), config.floor / k)
    high = np.full(len(before), np.inf)
    if config.max_step is not None:
        low, high = np.maximum(low, before / config.max_step), before * config.max_step
    low *= min(1.0, mass / low.sum()) if low.sum() > 0 else 1.0
    high = np.maximum(high, low)
    smallest, largest = -300.0, 300.0
    for _ in range(200):
        middle = (smallest + largest) / 2
        below = np.clip(np.exp(middle) * wanted, low, high).sum() < mass
        smallest, largest = (middle, largest) if below else (smallest, middle)
    clipped = np.clip(np.exp(largest) * wanted, low, high)
    return clipped / clipped.sum() * mass


def explain_weights(sizes: list[int], gaps: ClusterGaps, before: np.ndarray, after: np.ndarray) -> list[dict[str, Any]]:
    """One plain row per cluster: size, scored rows, mean gap with its error, weight before and after. (k,) arrays in."""
    columns = {
        "cluster": np.arange(len(sizes)),
        "size": np.array(sizes),
        "scored": gaps.scored,
        "mean_gap": gaps.mean,
        "standard_error": gaps.standard_error,
        "shrunk_gap": gaps.shrunk,
        "before": before,
        "after": after,
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*(c.tolist() for c in columns.values()), strict=True)]
    return [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows]
