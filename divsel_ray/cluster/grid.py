"""Measuring a grid of k on Ray: one coordinator runs all fits over the same shard actors, which also run the refits.

Samples of bounded size go from the shard actors through the coordinator to Ray's object store; no row reaches the driver.
The measures of each k are written at once, and a k that is measured is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from divsel_ray.cluster import distributed, kernels, lloyd, rows, silhouette, stability, stage
from divsel_ray.cluster.criteria import Candidate, check_grid
from divsel_ray.cluster.exact import Float32, exact_total
from divsel_ray.cluster.kernels import Int32, Rows
from divsel_ray.cluster.lloyd import Fit, Settings
from divsel_ray.cluster.shards import Geometry, Shards
from divsel_ray.config import ClusterConfig
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import read_json, write_json


def measure_grid(
    embedding_files: Sequence[str],
    grid: Sequence[int],
    config: ClusterConfig,
    seed: int,
    folder: Path,
    cluster: Cluster,
    progress: Progress,
) -> list[Candidate]:
    """Measure every k of the grid, and write the measures of each into `folder` (`k-00064.json`) as they are known.

    Args:
        embedding_files: Parquet files with `row_id` and `embedding`.
        grid: numbers of clusters.
        config: settings of each fit; its `k` and its size cap are ignored.
        seed: seed of initial centroids and samples.
        folder: output folder, visible to every node; a k whose file exists is not measured again.
        cluster: available resources.
        progress: receives the iterations and refits of each k.

    Returns:
        Candidates in the order of the grid.

    Raises:
        InputError: a file cannot be used, a row is not finite, or a k exceeds the number of rows.
        JobError: Ray lost the actors for good.
    """
    files = rows.check_files(rows.list_files(list(embedding_files)))
    check_grid(grid, files.rows)
    due = [k for k in grid if not _path(folder, k).is_file()]
    if due:
        config = config.model_copy(update={"size_cap": None})
        with stage.open_rows(files, config, cluster, progress) as held:
            task = GridTask(due, config, seed, str(folder), stage.check(held, files, config))
            distributed.coordinate(held, run_grid, (task,), progress)
    return [Candidate(**read_json(_path(folder, k))) for k in grid]


def measured_settings(config: ClusterConfig) -> dict[str, Any]:
    """The settings on which the measures of a k depend."""
    return config.model_dump(mode="json", exclude={"k", "size_cap", "n_shards", "mode", "workers"})


def _path(folder: str | Path, k: int) -> Path:
    return Path(folder) / f"k-{k:05}.json"


@dataclass(frozen=True)
class GridTask:
    """The coordinator's task: the k to measure, the settings of the fits, and the output folder."""

    grid: Sequence[int]
    config: ClusterConfig
    seed: int
    folder: str
    geometry: Geometry


@dataclass(frozen=True)
class _Samples:
    """References to the evaluation rows and to each refit's subsample."""

    evaluation: Any
    subsamples: list[Any]


def run_grid(held: Shards, task: GridTask, report: lloyd.Report) -> None:
    """Measure one k after the other; called by the coordinator, which resumes here after a restart."""
    samples = _draw_samples(held, task)
    for k in task.grid:
        if not _path(task.folder, k).is_file():
            write_json(_path(task.folder, k), asdict(_measure(held, task, samples, k, report)))


def _draw_samples(held: Shards, task: GridTask) -> _Samples:
    """Draw subsamples large enough for the largest k; smaller ones are prefixes of these."""
    count, seed = task.geometry.rows, task.seed
    size = stability.subsample_rows(count, max(task.grid))
    evaluation = ray.put(stability.draw_rows(held, seed, 0, stability.evaluation_rows(count)))
    numbers = range(1, stability.REFITS + 1)
    return _Samples(evaluation, [ray.put(stability.draw_rows(held, seed, number, size)) for number in numbers])


def _measure(held: Shards, task: GridTask, samples: _Samples, k: int, report: lloyd.Report) -> Candidate:
    began = time.monotonic()
    count = task.geometry.rows
    report_k: lloyd.Report = lambda done, total, unit: report(done, total, f"{unit}, k = {k:,}")  # noqa: E731
    fit = lloyd.fit(held, stage.settings(task.config, k, task.seed, count), task.geometry, report_k)
    parts = held.map(silhouette.simplified, fit.centroids, fit.sizes)
    calls = [(_sampled_silhouette, samples.evaluation, fit.centroids), *_refits(task, samples, k)]
    sampled, *labelings = distributed.run_all(held, calls, report_k, "refits")
    agreement = stability.agreement(labelings) if labelings else (None, None)
    return Candidate(
        simplified_silhouette=exact_total(np.sum(parts, axis=0)) / count,
        silhouette=sampled,
        silhouette_rows=stability.evaluation_rows(count),
        stability=agreement[0],
        stability_deviation=agreement[1],
        refits=len(labelings),
        seconds=round(time.monotonic() - began, 3),
        **_facts(fit),
    )


def _refits(task: GridTask, samples: _Samples, k: int) -> list[tuple[Any, ...]]:
    """One call per subsample; none if subsamples have fewer than k rows."""
    size = stability.subsample_rows(task.geometry.rows, k)
    if size < k:
        return []
    config = task.config.model_copy(update={"fit_rows": None})
    return [
        (_refit, subsample, size, samples.evaluation, stage.settings(config, k, task.seed + number, size))
        for number, subsample in enumerate(samples.subsamples, start=1)
    ]


def _refit(subsample: Rows, size: int, evaluation: Rows, settings: Settings) -> Int32:
    return stability.refit(subsample[:size], evaluation, settings)


def _sampled_silhouette(sample: Rows, centroids: Float32) -> float | None:
    return silhouette.standard(sample, kernels.assign(sample, centroids).labels)


def _facts(fit: Fit) -> dict[str, Any]:
    return {
        "k": len(fit.sizes),
        "rows": int(fit.sizes.sum()),
        "inertia": fit.inertia,
        "singletons": int((fit.sizes == 1).sum()),
        "empty": int((fit.sizes == 0).sum()),
        "smallest": int(fit.sizes.min()),
        "median": float(np.median(fit.sizes)),
        "largest": int(fit.sizes.max()),
        "iterations": fit.iterations,
        "converged": fit.converged,
    }
