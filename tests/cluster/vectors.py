"""Small sets of vectors, Parquet files of them, and what a choice of k is made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import make_blobs

from divsel_ray.cluster.criteria import Candidate
from divsel_ray.cluster.rows import bounds
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import Geometry, LocalShards, inspect

PLAIN = Candidate(
    k=1,
    rows=100_000,
    inertia=1.0,
    simplified_silhouette=0.2,
    silhouette=0.1,
    silhouette_rows=1000,
    stability=0.7,
    stability_deviation=0.01,
    refits=3,
    singletons=0,
    empty=0,
    smallest=2,
    median=5,
    largest=9,
    iterations=3,
    converged=True,
    seconds=1.0,
)


def write_embeddings(folder: Path, vectors: np.ndarray, parts: int = 2) -> list[str]:
    """Embedding files `part-0.parquet`, ...; row i of file p has the id `p-i`."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, (low, high) in enumerate(bounds(len(vectors), parts)):
        part = vectors[low:high].astype(np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
        paths.append(str(folder / f"part-{number}.parquet"))
        pq.write_table(pa.table({"row_id": [f"{number}-{i}" for i in range(len(part))], "embedding": column}), paths[-1])
    return paths


def blobs(n: int = 900, clusters: int = 8, spread: float = 0.15) -> np.ndarray:
    """Normal clusters (n, 6) around random centres."""
    return make_blobs(n, 6, centers=clusters, cluster_std=spread, center_box=(-3, 3), random_state=4)[0]


def shards_of(rows: np.ndarray, parts: int = 1) -> LocalShards:
    """The rows in so many partitions of this process."""
    return LocalShards([Shard(rows[low:high], low) for low, high in bounds(len(rows), parts)])


def geometry_of(rows: np.ndarray) -> Geometry:
    """What a fit has to know of all rows beforehand."""
    return inspect(shards_of(rows), rows.shape[1]).geometry
