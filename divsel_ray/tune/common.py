"""The stages that are the same in all trials, made once and before any trial, so that trials at the same time share them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from divsel_ray.config import Config
from divsel_ray.pipeline import plan_job
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.stages import Job
from divsel_ray.store import Store


def common_stages(configs: Sequence[Config], folder: Path) -> frozenset[str]:
    """Names of the stages that all of these jobs have alike, but for those of rounds.

    Args:
        configs: at least one; a stage differs between jobs as soon as a setting differs that it depends on.
        folder: of the shared stages.
    """
    plans = [{stage.key: stage.name for stage, _ in plan_job(config, folder) if "/" not in stage.name} for config in configs]
    return frozenset(plans[0][key] for key in set.intersection(*map(set, plans)))


def make_common(configs: Sequence[Config], folder: Path, cluster: Cluster, progress: Progress) -> None:
    """Make what all of these jobs have in common of pool, embeddings, clusters and scores of the pool's rows.

    Args:
        configs: at least one.
        folder: where the stages go.
        cluster: what there is to compute with.
        progress: told of stages.

    Raises:
        InputError: the data or a model does not fit the configuration.
        JobError: a stage failed.
    """
    common, store = common_stages(configs, folder), Store(folder)
    making, naming = (Job(configs[0], store, progress, cluster, dry=dry) for dry in (False, True))

    def job_of(stage: str) -> Job:
        """Of a stage that is not common a dry job knows the identity. A common one has common inputs: it never reads those."""
        return making if stage in common else naming

    with store.lock():
        records = job_of("pool").pool()
        pool = job_of("clean").clean(records)
        embeddings = job_of("embed").embeddings(pool, records)
        clusters, reward = job_of("cluster").clusters(embeddings), job_of("reward").reward(pool)
        job_of("semantic").semantic(embeddings, clusters, job_of("quality").quality(pool, reward, clusters))
