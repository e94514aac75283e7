"""Density-aware sampling: from the whole pool, a row the sooner the smaller its cluster.

A row's rate is the inverse of its cluster's size, so that rows of crowded regions are drawn seldom. In expectation
clusters give alike while they last, but how many rows each gives is left to chance.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.exponential import exponential_keys
from divsel_ray.select.sampler import Candidates, Keyed, Keys


def _keys(candidates: Candidates, config: SelectConfig, seed: int) -> Keys:
    log_sizes = np.log(np.maximum(candidates.sizes, 1))
    return exponential_keys(candidates.row_ids, -log_sizes[candidates.cluster], seed)


SAMPLER = Keyed("a row the sooner the smaller its cluster", by_cluster=False, keys=_keys)
