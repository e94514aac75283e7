"""Exponential keys: weighted sampling without replacement (Efraimidis and Spirakis 2006).

Row i with rate p_i gets the key E_i / p_i, where E_i is an exponential variate from a hash of (seed, row id); the rows with
the smallest keys are drawn. Keys are stored as logarithms, so that no rate is too small.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.data.hashing import uniform_hash
from divsel_ray.select.sampler import Keys


def exponential_keys(row_ids: np.ndarray, log_rates: np.ndarray, seed: int) -> Keys:
    """Keys that draw rows with odds growing with their rate.

    Args:
        row_ids: (n,) bytes of 32 hex digits.
        log_rates: (n,) natural log of p_i; finite.
        seed: seed of the draw.
    """
    # In place: at ten million rows every copy takes 80 MB.
    keys = (uniform_hash(seed, "draw", row_ids) >> np.uint64(11)).astype(np.float64)
    keys += 0.5
    keys *= 2.0**-53
    for step in (np.log, np.negative, np.log):
        step(keys, out=keys)
    keys -= log_rates
    return Keys(keys, log_rates)
