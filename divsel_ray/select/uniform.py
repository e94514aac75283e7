"""Uniform sampling of the whole pool, the baseline that every other sampler has to beat."""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.exponential import exponential_keys
from divsel_ray.select.sampler import Candidates, Keyed, Keys


def uniform_keys(candidates: Candidates, config: SelectConfig, seed: int) -> Keys:
    """Keys that favour no row."""
    return exponential_keys(candidates.row_ids, np.zeros(len(candidates)), seed)


SAMPLER = Keyed("every row of the pool alike", by_cluster=False, keys=uniform_keys)
