"""The samplers by name."""

from divsel_ray.select.kmq import draw_kmq
from divsel_ray.select.kmrandom import draw_kmrandom
from divsel_ray.select.sampler import Sampler

SAMPLERS: dict[str, Sampler] = {"kmq": draw_kmq, "kmrandom": draw_kmrandom}
