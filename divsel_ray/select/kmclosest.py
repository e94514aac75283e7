"""kM-Closest (Yu et al. 2024, sec. 2.1): the rows nearest to their cluster's centroid."""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.sampler import Candidates, Keyed, Keys


def _keys(candidates: Candidates, config: SelectConfig, seed: int) -> Keys:
    if candidates.distance is None:
        raise ValueError("kM-Closest requires the distance of every row to its centroid")
    return Keys(candidates.distance.astype(np.float64))


SAMPLER = Keyed("the rows nearest to their cluster's centroid (kM-Closest)", by_cluster=True, keys=_keys, needs=("distance",))
