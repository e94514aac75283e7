"""Density-aware sampling: from the whole pool, favouring rows of small clusters.

A row's rate is the inverse of its cluster's size, so rows of crowded regions are drawn rarely. In expectation, clusters
contribute equally until they are exhausted, but the actual count of each is left to chance.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.exponential import exponential_keys
from divsel_ray.select.sampler import Candidates, Keyed, Keys


def _keys(candidates: Candidates, config: SelectConfig, seed: int) -> Keys:
    log_sizes = np.log(np.maximum(candidates.sizes, 1))
    return exponential_keys(candidates.row_ids, -log_sizes[candidates.cluster], seed)


SAMPLER = Keyed("the whole pool, favouring rows of small clusters", by_cluster=False, keys=_keys)
