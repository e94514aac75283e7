"""Uniform sampling of the whole pool: the baseline for every other sampler."""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.exponential import exponential_keys
from divsel_ray.select.sampler import Candidates, Keyed, Keys


def uniform_keys(candidates: Candidates, config: SelectConfig, seed: int) -> Keys:
    """Keys with equal rates for all rows."""
    return exponential_keys(candidates.row_ids, np.zeros(len(candidates)), seed)


SAMPLER = Keyed("uniform over the whole pool", by_cluster=False, keys=uniform_keys)
