"""kM-Random (Yu et al. 2024, sec. 2.1): every row of a cluster alike."""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.exponential import draw_smallest_keys
from divsel_ray.select.sampler import Candidates, Draw


def draw_kmrandom(candidates: Candidates, counts: np.ndarray, config: SelectConfig, seed: int) -> Draw:
    """Draw uniformly without replacement inside each cluster."""
    return draw_smallest_keys(candidates, np.zeros(len(candidates.row_ids)), counts, seed)
