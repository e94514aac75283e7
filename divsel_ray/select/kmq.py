"""kMQ (Yu et al. 2024, Eq. 3): within a cluster, rows are drawn with odds that grow with their quality.

| `odds` | rate of a row |
|---|---|
| softmax | `exp((q - max_j q) / (T x pooled sd))`: independent of the scale of q, never zero, never overflowing |
| linear | q itself, as in the paper, shifted so that the worst row of the pool keeps a hundredth of the range |
| power | the linear rate to the power 1 / T |
| rank | the rank of q inside the cluster, 1 for the worst, to the power 1 / T |
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.exponential import exponential_keys
from divsel_ray.select.sampler import Candidates, Keyed, Keys

_STEEPEST = 700.0
"""Largest log odds between two rows of a cluster; beyond it the smaller could never be drawn in double precision."""
_WORST = 0.01
"""Rate of the worst row under linear odds, as a fraction of the range of quality."""


def known_quality(candidates: Candidates) -> np.ndarray:
    """Quality without its scale, (n,) finite; a missing value counts as its cluster's mean."""
    return fill_missing(_scaled(candidates.quality), candidates.cluster, candidates.k)


def log_rates(candidates: Candidates, config: SelectConfig) -> np.ndarray:
    """Natural logarithm of the rates with which rows are drawn, (n,) finite, according to `config.odds`."""
    quality = known_quality(candidates)
    if config.odds == "softmax":
        return log_odds(quality, candidates.cluster, candidates.k, config.temperature)
    if config.odds == "rank":
        return np.log(_ranks(quality, candidates.cluster)) / config.temperature
    spread = np.ptp(quality) if len(quality) else 0.0
    if spread == 0:
        return np.zeros(len(quality))
    shifted = (quality - quality.min()) / spread + _WORST
    return np.log(shifted) / (config.temperature if config.odds == "power" else 1.0)


def _ranks(quality: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Rank of each row within its cluster, 1 for the lowest; equal rows share the lowest rank. (n,) to (n,) float64."""
    order = np.lexsort((quality, cluster))
    starts = np.flatnonzero(np.r_[True, np.diff(cluster[order]) != 0]) if len(order) else np.array([], int)
    new = np.r_[True, (np.diff(cluster[order]) != 0) | (np.diff(quality[order]) != 0)] if len(order) else np.array([], bool)
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    start = np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    ranks = np.empty(len(order))
    ranks[order] = first - start + 1
    return ranks


def _keys(candidates: Candidates, config: SelectConfig, seed: int) -> Keys:
    return exponential_keys(candidates.row_ids, log_rates(candidates, config), seed)


SAMPLER = Keyed("within clusters, with odds that grow with quality (kMQ)", by_cluster=True, keys=_keys, needs=("quality",))


def _scaled(quality: np.ndarray) -> np.ndarray:
    """Quality divided by its largest finite magnitude: odds do not change, and sums of huge scores cannot overflow."""
    known = np.abs(quality[np.isfinite(quality)])
    largest = known.max(initial=0.0)
    return quality / largest if largest > 0 else quality


def fill_missing(quality: np.ndarray, cluster: np.ndarray, k: int) -> np.ndarray:
    """Replace NaN and infinite quality by the cluster's mean, or the overall mean if the cluster has none. (n,) to (n,)."""
    known = np.isfinite(quality)
    overall = quality[known].mean() if known.any() else 0.0
    counts = np.bincount(cluster[known], minlength=k)
    sums = np.bincount(cluster[known], quality[known], minlength=k)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    return np.where(known, quality, means[cluster])


def log_odds(quality: np.ndarray, cluster: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """(q - max_j q) / (T x pooled sd), at least -700; all zeros if quality does not vary within clusters.

    Args:
        quality: (n,) finite.
        cluster: (n,) in 0..k-1.
        k: number of clusters.
        temperature: T.
    """
    quality = _scaled(quality)
    scale = temperature * pooled_sd(quality, cluster, k)
    if scale == 0:
        return np.zeros(len(quality))
    best = np.full(k, -np.inf)
    np.maximum.at(best, cluster, quality)
    return np.maximum((quality - best[cluster]) / scale, -_STEEPEST)


def pooled_sd(quality: np.ndarray, cluster: np.ndarray, k: int) -> float:
    """Pooled standard deviation within clusters: sqrt(sum of squares about cluster means / (n - clusters used))."""
    counts = np.bincount(cluster, minlength=k)
    means = np.bincount(cluster, quality, minlength=k) / np.maximum(counts, 1)
    freedom = len(quality) - int((counts > 0).sum())
    if freedom <= 0:
        return 0.0
    return float(np.sqrt(((quality - means[cluster]) ** 2).sum() / freedom))
