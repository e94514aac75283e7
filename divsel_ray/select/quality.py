"""Quality on a scale common to all scores."""

from __future__ import annotations

import numpy as np

from divsel_ray.select.kmq import known_quality
from divsel_ray.select.sampler import Candidates


def ranked_quality(candidates: Candidates) -> np.ndarray:
    """The share of candidates that are no better than each row, (n,) float64 in (0, 1]; ties share their mean.

    Ranks are used because scores from different sources differ in scale and shape, and a single huge score would squeeze the
    rest together. A row without quality ranks as its cluster's mean. If no row has a quality, all have 1.
    """
    if not np.isfinite(candidates.quality).any():
        return np.ones(len(candidates))
    _, place, counts = np.unique(known_quality(candidates), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place] / len(candidates)
