"""The stages that are the same in all trials, made once and before any trial, so that trials at the same time share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divsel_ray.config import Config
from divsel_ray.job import VERSIONS
from divsel_ray.pipeline import plan_job
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.stages import Job
from divsel_ray.store import Stage, Store


def common_keys(configs: Sequence[Config], folder: Path) -> frozenset[str]:
    """Keys of the stages that all of these jobs have, but for those of rounds.

    Args:
        configs: at least one; a key differs between jobs as soon as a setting differs that the stage depends on.
        folder: of the shared stages.
    """
    keys = [{stage.key for stage, _ in plan_job(config, folder) if "/" not in stage.name} for config in configs]
    return frozenset(set.intersection(*keys))


@dataclass
class _CommonJob(Job):
    """A job that makes only stages with these keys; of others it knows but the identity."""

    keys: frozenset[str] = frozenset()

    def make(
        self,
        name: str,
        config: Mapping[str, Any],
        inputs: Sequence[str],
        build: Callable[[Path], dict[str, Any]],
        summary: Callable[[dict[str, Any]], str],
    ) -> Stage:
        """As `StageMaker.make`, for stages that are common."""
        stage = self.store.stage(name, VERSIONS[name], config, inputs)
        return super().make(name, config, inputs, build, summary) if stage.key in self.keys else stage


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
    keys, store = common_keys(configs, folder), Store(folder)
    job = _CommonJob(configs[0], store, progress, cluster, keys=keys)
    with store.lock():
        records = job.pool()
        if records.key not in keys:
            return
        pool = job.clean(records)
        # A stage that is common has common inputs, so it never reads one that is only named here.
        embeddings = job.embeddings(pool, records)
        clusters, reward = job.clusters(embeddings), job.reward(pool)
        job.semantic(embeddings, clusters, job.quality(pool, reward, clusters))
