"""kM-Random (Yu et al. 2024, sec. 2.1): uniform within clusters."""

from __future__ import annotations

from divsel_ray.select.sampler import Keyed
from divsel_ray.select.uniform import uniform_keys

SAMPLER = Keyed("uniform within clusters (kM-Random)", by_cluster=True, keys=uniform_keys)
