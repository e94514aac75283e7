"""Cost of stages: the duration of each times the CPUs and GPUs of its workers."""

from __future__ import annotations

from collections.abc import Sequence

from divsel_ray.config import Config, Workers
from divsel_ray.needs import Known, needs_of
from divsel_ray.resources import Cluster
from divsel_ray.stage_names import kind_of
from divsel_ray.store import Stage
from divsel_ray.usage import usage_of

_ONE = Workers(gpus=0)


def spent_by(stages: Sequence[Stage], config: Config, cluster: Cluster) -> dict[str, float]:
    """{"cpu_s", "gpu_s"} of stages, each counted once; excludes the driver and workers that stay loaded between stages.

    The resources reserved in the whole cluster meanwhile (`usage`) would include those of other cells.
    """
    spent = {"cpu_s": 0.0, "gpu_s": 0.0}
    needs = needs_of(config, cluster, Known())
    for stage in {stage.key: stage for stage in stages}.values():
        kind = kind_of(stage.name)
        need, usage = needs.get(kind), usage_of(stage.facts)
        workers = need.workers if need else _ONE
        # Scorers start one by one during generation, so the number for which there is room would overstate their cost.
        count = 1 if need is None or (workers.count is None and kind == "score") else need.count
        wall = usage.wall_s if usage else stage.seconds
        spent["cpu_s"] += wall * min(workers.cpus * count, cluster.cpus)
        spent["gpu_s"] += wall * min(cluster.gpus_per_worker(workers) * count, cluster.gpus)
    return spent
