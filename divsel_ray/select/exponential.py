"""Weighted sampling without replacement by exponential keys (Efraimidis and Spirakis 2006).

Row i with rate p_i gets the key E_i / p_i, with E_i exponential from a hash of (seed, row id); the rows with the
smallest keys are drawn. The draw depends on no order, no block and no worker, and asking for more rows extends it.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.data.hashing import uniform_hash
from divsel_ray.select.sampler import Candidates, Draw


def draw_smallest_keys(candidates: Candidates, log_rates: np.ndarray, counts: np.ndarray, seed: int) -> Draw:
    """Draw `counts[j]` rows of each cluster with odds that grow with their rate.

    The weight is the inverse of the inclusion probability given the other rows' keys, `1 - exp(-p_i t)` with t the
    smallest key left out of the cluster (rank conditioning, Cohen and Kaplan 2007): sums weighted so are unbiased.

    Args:
        candidates: n rows.
        log_rates: (n,) natural log of p_i; finite.
        counts: (k,) rows to draw per cluster, at most its size.
        seed: of the draw.
    """
    uniform = (uniform_hash(seed, "draw", candidates.row_ids) >> np.uint64(11)).astype(np.float64) + 0.5
    log_keys = np.log(-np.log(uniform * 2.0**-53)) - log_rates
    order = np.lexsort((candidates.row_ids, log_keys, candidates.cluster))
    starts = np.concatenate([[0], np.cumsum(candidates.sizes)])[:-1]
    rank = np.arange(len(order)) - starts[candidates.cluster[order]]
    taken = rank < counts[candidates.cluster[order]]
    threshold = _smallest_left_out(log_keys[order], starts, counts, candidates.sizes)
    index = np.sort(order[taken])
    log_hazard = np.minimum(log_rates[index] + threshold[candidates.cluster[index]], 700.0)
    return Draw(index, 1.0 / -np.expm1(-np.exp(log_hazard)))


def _smallest_left_out(sorted_keys: np.ndarray, starts: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    threshold = np.full(len(sizes), np.inf)
    partial = counts < sizes
    threshold[partial] = sorted_keys[starts[partial] + counts[partial]]
    return threshold
