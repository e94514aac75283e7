"""Builds the stages that all trials share, once and before the first trial, so that concurrent trials can reuse them."""

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
    """Names of the stages that are identical in all of these jobs, except for stages of rounds.

    Args:
        configs: at least one; a stage differs between jobs if any setting that it depends on differs.
        folder: folder of the shared stages.
    """
    plans = [{stage.key: stage.name for stage, _ in plan_job(config, folder) if "/" not in stage.name} for config in configs]
    return frozenset(plans[0][key] for key in set.intersection(*map(set, plans)))


def make_common(configs: Sequence[Config], folder: Path, cluster: Cluster, progress: Progress) -> None:
    """Build the stages that these jobs share: pool, embeddings, clusters and scores of the rows of the pool.

    Args:
        configs: at least one.
        folder: folder of the shared stages.
        cluster: available resources.
        progress: receives the progress of the stages.

    Raises:
        InputError: the data or a model does not fit the configuration.
        JobError: a stage failed.
    """
    common, store = common_stages(configs, folder), Store(folder)
    making, naming = (Job(configs[0], store, progress, cluster, dry=dry) for dry in (False, True))

    def job_of(stage: str) -> Job:
        """The job for a stage, a dry one (identities only) unless the stage is shared. Shared stages only read shared ones."""
        return making if stage in common else naming

    with store.lock():
        records = job_of("pool").pool()
        pool = job_of("clean").clean(records)
        embeddings = job_of("embed").embeddings(pool, records)
        clusters, reward = job_of("cluster").clusters(embeddings), job_of("reward").reward(pool)
        job_of("semantic").semantic(embeddings, clusters, job_of("quality").quality(pool, reward, clusters))
