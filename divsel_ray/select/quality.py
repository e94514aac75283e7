"""Quality on a scale that any score can be put on."""

from __future__ import annotations

import numpy as np

from divsel_ray.select.kmq import known_quality
from divsel_ray.select.sampler import Candidates


def ranked_quality(candidates: Candidates) -> np.ndarray:
    """The share of the candidates that are no better than each, (n,) float64 in (0, 1]; equal ones share the mean.

    Ranks, because scores of one source and another differ in scale and shape, and a single huge one would squeeze the rest
    together. A row without quality ranks as its cluster's mean. Where no row has any, all have 1.
    """
    if not np.isfinite(candidates.quality).any():
        return np.ones(len(candidates))
    _, place, counts = np.unique(known_quality(candidates), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place] / len(candidates)
