"""Top quality: the best rows of the pool regardless of topic. The baseline without diversity."""

from __future__ import annotations

from divsel_ray.config import SelectConfig
from divsel_ray.select.kmq import known_quality
from divsel_ray.select.sampler import Candidates, Keyed, Keys


def _keys(candidates: Candidates, config: SelectConfig, seed: int) -> Keys:
    return Keys(-known_quality(candidates))


SAMPLER = Keyed("the best rows of the pool, ties by row id", by_cluster=False, keys=_keys, needs=("quality",), by_quality=True)
