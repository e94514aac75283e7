"""New centroids from sums, and the repair of clusters that have lost all their rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from divsel_ray.cluster.exact import Float32, Float64, Grid, Int64
from divsel_ray.cluster.kernels import Int32, tensor_of


class Farthest(NamedTuple):
    """Rows far from their centroids, farthest first.

    Attributes:
        squared_distances: (m,).
        indices: (m,) global row numbers.
        labels: (m,) clusters of the rows.
        rows: (m, d) float32.
    """

    squared_distances: Float64
    indices: Int64
    labels: Int32
    rows: Float32


def farthest(squared_distances: Float64, count: int) -> Int64:
    """Numbers (m,) of the rows farthest from their centroids, m at most `count`; excludes rows that lie on their centroid."""
    at = np.argsort(-squared_distances, kind="stable")[:count]
    return at[squared_distances[at] > 0].astype(np.int64)


def merge_farthest(parts: list[Farthest], count: int) -> Farthest:
    """Merge the farthest rows of all parts; ties go to the lower row number."""
    whole = Farthest(*(np.concatenate([part[i] for part in parts]) for i in range(4)))
    order = np.lexsort((whole.indices, -whole.squared_distances))[:count]
    return Farthest(*(field[order] for field in whole))


def relocate(sums: Float64, counts: Int64, far: Farthest, grid: Grid) -> tuple[Float64, Int64]:
    """Move one of the farthest rows into each empty cluster (scikit-learn's rule).

    Args:
        sums: (k, d) sums of the clusters' rows.
        counts: (k,) rows per cluster.
        far: farthest rows, best first; the i-th goes to the i-th empty cluster. With too few, some clusters stay empty.
        grid: grid that rows are rounded to in the sums.

    Returns:
        New sums (k, d) and counts (k,).
    """
    sums, counts = sums.copy(), counts.copy()
    empty = np.flatnonzero(counts == 0)
    rows = grid.round(tensor_of(far.rows)).numpy()
    for cluster, label, row in zip(empty, far.labels, rows, strict=False):
        sums[label] -= row
        counts[label] -= 1
        sums[cluster] = row
        counts[cluster] = 1
    return sums, counts


def finish(sums: Float64, counts: Int64, centroids: Float32, *, spherical: bool = False) -> Float32:
    """Compute new centroids (k, d) float32: sums / counts. A cluster without rows keeps its centroid; it is never set to zero.

    Args:
        sums: (k, d).
        counts: (k,).
        centroids: (k, d) old centroids.
        spherical: scale means to unit length (Dhillon and Modha 2001); a mean of zero keeps its centroid.
    """
    means = sums / np.maximum(counts, 1)[:, None]
    kept = counts == 0
    if spherical:
        norms = np.sqrt(np.square(means).sum(axis=1))
        kept |= norms == 0
        means /= np.where(norms > 0, norms, 1)[:, None]
    return np.where(kept[:, None], centroids, means).astype(np.float32)
