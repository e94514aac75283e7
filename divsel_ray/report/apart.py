"""Separation of a run's clusters, measured on a sample of its rows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from divsel_ray.cluster.silhouette import nearest_other
from divsel_ray.cluster.stage import CENTROIDS

ROWS = 2_000
"""Maximum number of rows measured. Rows are sorted by their ids, which are hashes, so the first ones are a random sample."""
FILES = 8


def measure_silhouette(embeddings: Path, clusters: Path, sizes: list[int]) -> float | None:
    """Mean simplified silhouette of the first rows, each left out of its own centroid; None without rows or a second cluster.

    For a row at distance `a` from its own centroid and `b` from the nearest other one, it is `(b - a) / max(a, b)`
    (Hruschka, de Castro and Campello 2004). A row is closer to a mean that includes it, by a factor of `(n - 1) / n` in a
    cluster of `n`: without the correction, small clusters of random vectors look well separated. A row alone in its cluster
    counts as 0.

    Args:
        embeddings: folder of Parquet files with `embedding`.
        clusters: folder of Parquet files of the same names and row order, with `cluster` and `distance`, and of the centroids,
            which are means of their rows.
        sizes: (k,) rows per cluster.
    """
    occupied, size = np.flatnonzero(sizes), np.array(sizes)
    # A partition can be empty.
    files = list(islice((file for file in sorted(embeddings.glob("*.parquet")) if pq.read_metadata(file).num_rows), FILES))
    if len(occupied) < 2 or not files:
        return None
    centroids = np.load(clusters / CENTROIDS)[occupied]
    place = np.cumsum(size > 0) - 1
    values = []
    for file in files:
        label, distance = (_first(clusters / file.name, name, ROWS // len(files)) for name in ("cluster", "distance"))
        vectors = _first(file, "embedding", ROWS // len(files)).astype(np.float32)
        other = np.sqrt(nearest_other(vectors, centroids, place[label].astype(np.int32)))
        own = distance * size[label] / np.maximum(size[label] - 1, 1)
        values.append(np.where(size[label] > 1, (other - own) / np.maximum(np.maximum(other, own), 1e-12), 0.0))
    return float(np.concatenate(values).mean())


def _first(file: Path, column: str, rows: int) -> np.ndarray:
    """The first rows of a column: (m,), or (m, d) for a list column."""
    values = next(pq.ParquetFile(file).iter_batches(batch_size=rows, columns=[column])).column(0)
    return np.stack(values.to_numpy(zero_copy_only=False)) if column == "embedding" else values.to_numpy(zero_copy_only=False)
