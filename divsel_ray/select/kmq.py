"""kMQ (Yu et al. 2024, Eq. 3): inside a cluster, rows are drawn with odds that grow with their quality.

Odds are `softmax((q - max_j q) / (T x pooled sd))`: free of the scale of q, never zero, never overflowing.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.exponential import draw_smallest_keys
from divsel_ray.select.sampler import Candidates, Draw

_STEEPEST = 700.0
"""Largest log odds between two rows of a cluster: beyond it the smaller could never be drawn in double precision."""


def draw_kmq(candidates: Candidates, counts: np.ndarray, config: SelectConfig, seed: int) -> Draw:
    """Draw without replacement inside each cluster, weighted by quality; missing quality counts as the cluster's mean."""
    quality = fill_missing(_scaled(candidates.quality), candidates.cluster, candidates.k)
    return draw_smallest_keys(candidates, log_odds(quality, candidates.cluster, candidates.k, config.temperature), counts, seed)


def _scaled(quality: np.ndarray) -> np.ndarray:
    """Quality divided by its largest finite size: odds do not change, and sums of huge scores cannot overflow."""
    known = np.abs(quality[np.isfinite(quality)])
    largest = known.max(initial=0.0)
    return quality / largest if largest > 0 else quality


def fill_missing(quality: np.ndarray, cluster: np.ndarray, k: int) -> np.ndarray:
    """Replace NaN and infinite quality by the cluster's mean, or the overall mean where a cluster has none. (n,) to (n,)."""
    known = np.isfinite(quality)
    overall = quality[known].mean() if known.any() else 0.0
    counts = np.bincount(cluster[known], minlength=k)
    sums = np.bincount(cluster[known], quality[known], minlength=k)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    return np.where(known, quality, means[cluster])


def log_odds(quality: np.ndarray, cluster: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """(q - max_j q) / (T x pooled sd), at least -700; all zeros when quality does not vary inside clusters.

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
    """Standard deviation inside clusters, pooled: sqrt(sum of squares about cluster means / (n - clusters used))."""
    counts = np.bincount(cluster, minlength=k)
    means = np.bincount(cluster, quality, minlength=k) / np.maximum(counts, 1)
    freedom = len(quality) - int((counts > 0).sum())
    if freedom <= 0:
        return 0.0
    return float(np.sqrt(((quality - means[cluster]) ** 2).sum() / freedom))
