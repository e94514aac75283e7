"""kM-Random (Yu et al. 2024, sec. 2.1): every row of a cluster alike."""

from __future__ import annotations

from divsel_ray.select.sampler import Keyed
from divsel_ray.select.uniform import uniform_keys

SAMPLER = Keyed("every row of a cluster alike (kM-Random)", by_cluster=True, keys=uniform_keys)
