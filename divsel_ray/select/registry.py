"""The samplers by name. To add one, write a file with a `SAMPLER` and add a line here."""

from divsel_ray.config import Config, SelectConfig
from divsel_ray.errors import InputError
from divsel_ray.select import deita, density, facility, kcenter, kmclosest, kmq, kmrandom, mig, qdit, top, uniform
from divsel_ray.select.sampler import Keyed, Sampler

SAMPLERS: dict[str, Sampler] = {
    "kmq": kmq.SAMPLER,
    "kmrandom": kmrandom.SAMPLER,
    "kmclosest": kmclosest.SAMPLER,
    "random": uniform.SAMPLER,
    "top": top.SAMPLER,
    "density": density.SAMPLER,
    "kcenter": kcenter.SAMPLER,
    "deita": deita.SAMPLER,
    "facility": facility.SAMPLER,
    "qdit": qdit.SAMPLER,
    "mig": mig.SAMPLER,
}


def memory_of(sampler: Sampler, n: int, d: int, k: int, b: int, config: SelectConfig) -> int:
    """Bytes needed to draw b of n rows in d dimensions and k clusters, including the vectors if the sampler reads them."""
    return sampler.memory(n, d, k, b, config) + (2 * n * d if "vectors" in sampler.needs else 0)


def check_sampler(config: Config) -> None:
    """Reject, before any work, a sampler that does not exist or does not fit the job.

    Raises:
        InputError: the message names the known samplers or the setting to change.
    """
    name = config.select.sampler
    if name not in SAMPLERS:
        raise InputError(f"select.sampler {name!r}: expected one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    if config.refine is not None and not (isinstance(sampler, Keyed) and sampler.by_cluster):
        able = [known for known, one in SAMPLERS.items() if isinstance(one, Keyed) and one.by_cluster]
        raise InputError(
            f"select.sampler {name}: refinement moves the weights of clusters, which this sampler does not use; choose one of "
            f"{', '.join(able)}, or remove `refine`"
        )
    if sampler.by_quality and config.quality.source == "none":
        raise InputError(f"select.sampler {name}: ranks rows by quality, but quality.source is none; set one, e.g. column:score")
