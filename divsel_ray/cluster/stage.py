"""The cluster stage: embedding files in, centroids and one cluster file per embedding file out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.cluster import balance, distributed, lloyd, rows
from divsel_ray.cluster.actors import Holding, RayShards, open_source
from divsel_ray.cluster.journal import Journal
from divsel_ray.cluster.lloyd import Fit, Settings
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import Geometry
from divsel_ray.config import ClusterConfig
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import read_json, write_array, write_json, write_table

CENTROIDS = "centroids.npy"
FACTS = "facts.json"
THRESHOLDS = "thresholds.npy"
JOURNAL = "fit.npz"
HELD_ELEMENTS = 1 << 27
"""Larger files are read several times instead of being held in memory while their clusters are written."""


def build_clusters(
    embedding_files: list[str], config: ClusterConfig, seed: int, folder: Path, cluster: Cluster, progress: Progress
) -> dict[str, Any]:
    """Cluster the vectors of all files and write each row's cluster.

    Written to `folder`: `centroids.npy` (k, d) float32; `facts.json`, the facts below; and for each embedding file a Parquet
    file of the same base name with `row_id` string, `cluster` int32 and `distance` float32, the Euclidean distance to the
    row's own centroid. If the first two exist, the fit is not repeated and only missing files are written; during the fit,
    `fit.npz` contains its last iteration, from which a killed fit resumes. With a size cap also `thresholds.npy` (k,) int64,
    see `balance.Balanced`.

    Args:
        embedding_files: Parquet files with `row_id` and `embedding`, and with distinct base names.
        config: see `ClusterConfig`; if `k` is not set, it is chosen by the number of rows.
        seed: seed of the initial centroids.
        folder: output folder.
        cluster: available resources.
        progress: receives the number of centroids drawn, of iterations and of files.

    Returns:
        Facts: k, rows, iterations, inertia, sizes (k numbers of rows), empty (number of clusters without rows), converged, and
        warnings (lines).

    Raises:
        InputError: a file cannot be used, a row is not finite, or k exceeds the number of rows.
        JobError: Ray lost the actors for good.
    """
    files = rows.check_files(rows.list_files(embedding_files))
    k = config.resolved(files.rows).k or 1
    if k > files.rows:
        raise distributed.too_many_clusters(k, files.rows)
    pairs = [(path, str(folder / Path(path).name)) for path in files.paths]
    _check_names(pairs)
    with open_rows(files, config, cluster, progress, folder) as held:
        if not ((folder / CENTROIDS).is_file() and (folder / FACTS).is_file()):
            _fit(held, files, settings(config, k, seed, files.rows), check(held, files, config), folder, progress)
        starts = np.cumsum([0, *files.counts]).tolist()
        how = (str(folder), config.metric == "cosine", files.half)
        calls = [(write_clusters, *pair, first, *how) for pair, first in zip(pairs, starts, strict=False)]
        distributed.run_all(held, calls, progress.advance, "files")
    return dict(read_json(folder / FACTS))


@contextlib.contextmanager
def open_rows(
    files: rows.Files, config: ClusterConfig, cluster: Cluster, progress: Progress, folder: Path | None = None
) -> Iterator[RayShards]:
    """Start shard actors for the rows of these files, writing to `folder`, and note how the rows are held."""
    plan = distributed.plan_memory(files, cluster, config.mode)
    progress.note(plan.reason)
    holding = Holding(plan.streamed, config.metric == "cosine", config.workers)
    parts = config.n_shards or distributed.default_shards(files.rows, config.workers, cluster)
    with distributed.start_shards(rows.partition(files, parts), cluster, holding, folder=folder) as held:
        yield held


def check(held: RayShards, files: rows.Files, config: ClusterConfig) -> Geometry:
    """Check all rows of these files, and return their geometry.

    Raises:
        InputError: a row cannot be used.
    """
    directions = config.metric == "cosine"
    return distributed.check_rows(held, files.dimension, lambda index: rows.name_row(files, index), directions=directions)


def settings(config: ClusterConfig, k: int, seed: int, count: int) -> Settings:
    """The configured settings for a fit of `count` rows."""
    # The tolerance is for products that would be whole numbers without rounding.
    cap = None if config.size_cap is None else int(np.ceil(config.size_cap * count / k - 1e-9))
    return Settings(
        k=k,
        init=config.init,
        n_init=config.n_init,
        max_iter=config.max_iter,
        tol=config.tol,
        seed=seed,
        spherical=config.metric == "cosine",
        progressive=config.progressive,
        share=lloyd.share_of(config.fit_rows, count),
        max_size=cap,
    )


def _fit(held: RayShards, files: rows.Files, asked: Settings, geometry: Geometry, folder: Path, progress: Progress) -> None:
    journal = Journal(folder / JOURNAL, lloyd.identity(asked, geometry, files.paths))
    fit = distributed.fit(held, asked, geometry, progress, journal)
    write_array(folder / CENTROIDS, fit.centroids)
    if fit.thresholds is not None:
        write_array(folder / THRESHOLDS, fit.thresholds)
    write_json(folder / FACTS, _facts(fit))
    journal.remove()


def write_clusters(source: str, target: str, first: int, folder: str, normalised: bool, half: bool) -> None:
    """Assign the rows of one embedding file and write `row_id, cluster, distance`; an existing file is left unchanged.

    Args:
        source: Parquet file with `row_id` and `embedding`.
        target: Parquet file to write; `distance` is the Euclidean distance to the row's own centroid.
        first: global number of the file's first row.
        folder: folder of the centroids and, with a size cap, the thresholds.
        normalised: scale rows to unit length.
        half: whether all files of the fit store float16, so that rows are rounded as they were during the fit.
    """
    if Path(target).exists():
        return
    parts = rows.partition(rows.check_files([source]), 1)
    # A file without rows has no partition.
    labels, squared = np.zeros(0, np.int32), np.zeros(0)
    if parts:
        labels, squared = _assign(replace(parts[0], half=half), first, Path(folder), normalised=normalised)
    ids = pq.read_table(source, columns=["row_id"], partitioning=None)["row_id"].cast(pa.string())
    distances = np.sqrt(squared).astype(np.float32)
    write_table(target, pa.table({"row_id": ids, "cluster": labels, "distance": distances}))


def _assign(part: rows.Partition, first: int, folder: Path, *, normalised: bool) -> tuple[np.ndarray, np.ndarray]:
    """Labels and squared distances of a file's rows; arguments as of `write_clusters`."""
    streamed = part.rows * part.dimension > HELD_ELEMENTS
    shard = Shard(open_source(part, Holding(streamed, normalised)), first)
    centroids, thresholds = np.load(folder / CENTROIDS), folder / THRESHOLDS
    capped = thresholds.is_file()
    return balance.balanced_labels(shard, centroids, np.load(thresholds)) if capped else shard.assign(centroids)


def _facts(fit: Fit) -> dict[str, Any]:
    empty = int((fit.sizes == 0).sum())
    warnings = []
    if empty:
        warnings.append(f"{empty} of {len(fit.sizes)} clusters are empty: the pool has too few distinct vectors; lower cluster.k")
    return {
        "k": len(fit.sizes),
        "rows": int(fit.sizes.sum()),
        "iterations": fit.iterations,
        "inertia": fit.inertia,
        "sizes": fit.sizes.tolist(),
        "empty": empty,
        "converged": fit.converged,
        "warnings": warnings,
    }


def _check_names(pairs: list[tuple[str, str]]) -> None:
    targets: dict[str, str] = {}
    for source, target in pairs:
        if target in targets:
            raise InputError(f"{source}: has the same base name as {targets[target]}; rename one of them")
        targets[target] = source
