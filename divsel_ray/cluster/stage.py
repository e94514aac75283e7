"""The cluster stage: embedding files in, centroids and one cluster file per embedding file out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from divsel_ray.cluster import distributed, rows
from divsel_ray.cluster.kernels import Float32
from divsel_ray.cluster.lloyd import Fit, Settings
from divsel_ray.config import ClusterConfig
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import atomic_path, read_json, write_json

CENTROIDS = "centroids.npy"
FACTS = "facts.json"


def build_clusters(
    embedding_files: list[str], config: ClusterConfig, seed: int, folder: Path, cluster: Cluster, progress: Progress
) -> dict[str, Any]:
    """Cluster the vectors of all files and write who belongs where.

    Written to `folder`: `centroids.npy` (k, d) float32; `facts.json`, the facts below; and for each embedding file a Parquet
    file of the same base name with `row_id` string, `cluster` int32 and `distance` float32, the Euclidean distance to the
    row's own centroid. In a folder that holds the first two the fit is not repeated, only missing files are written.

    Args:
        embedding_files: Parquet files with `row_id` and `embedding`; their base names differ.
        config: see `ClusterConfig`; without `k` it is chosen by the number of rows.
        seed: of the first centroids.
        folder: where the output goes.
        cluster: what there is to compute with.
        progress: told of centroids drawn, iterations and files.

    Returns:
        facts: k, rows, iterations, inertia, sizes (k rows per cluster), empty (clusters without rows), converged, and
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
    with distributed.start_shards(rows.partition(files, config.n_shards), cluster) as shards:
        if not ((folder / CENTROIDS).is_file() and (folder / FACTS).is_file()):
            settings = Settings(k, config.init, config.n_init, config.max_iter, config.tol, seed)
            fit = distributed.fit(shards, settings, lambda index: rows.name_row(files, index), progress)
            _write_centroids(folder / CENTROIDS, fit.centroids)
            write_json(folder / FACTS, _facts(fit))
        distributed.write_files(shards, pairs, np.load(folder / CENTROIDS), progress)
    return dict(read_json(folder / FACTS))


def _check_names(pairs: list[tuple[str, str]]) -> None:
    targets: dict[str, str] = {}
    for source, target in pairs:
        if target in targets:
            raise InputError(f"{source}: has the base name of {targets[target]}; expected distinct names, rename one of them")
        targets[target] = source


def _write_centroids(path: Path, centroids: Float32) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, centroids, allow_pickle=False)


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
