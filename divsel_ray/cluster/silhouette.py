"""How well clusters are separated: the simplified silhouette on all rows, and the standard one on a sample.

For every row, both compare the distance `a` to its own cluster with the distance `b` to the nearest other one, as
`(b - a) / max(a, b)`: near 1 deep inside a cluster, 0 between two. Both use Euclidean distances, not squared ones.

- simplified (Hruschka, de Castro and Campello 2004; Vendramin et al. 2010): distances to centroids. One more pass over the rows.
- standard (Rousseeuw 1987): mean distances to the rows of the clusters. Quadratic, hence on a sample.

A row that is alone in its cluster counts as 0 (Rousseeuw's convention); otherwise many tiny clusters would look perfect.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import silhouette_score

from divsel_ray.cluster import kernels
from divsel_ray.cluster.exact import Float32, Float64, Int64, exact_parts
from divsel_ray.cluster.kernels import Int32, Rows
from divsel_ray.cluster.shard import Shard


def simplified(shard: Shard, centroids: Float32, sizes: Int64) -> Int64:
    """Exact sum of the simplified silhouettes of a partition's rows, in parts (see `exact.exact_parts`).

    Args:
        shard: the rows.
        centroids: (k, d); those without rows are ignored.
        sizes: (k,) rows per cluster over all partitions.
    """
    labels, squared = shard.assign(centroids)
    occupied = np.flatnonzero(sizes)
    place = np.cumsum(sizes > 0) - 1
    total = exact_parts(np.empty(0))
    for start, rows in shard.tensors():
        part = slice(start, start + len(rows))
        other = nearest_other(rows, centroids[occupied], place[labels[part]].astype(np.int32))
        values = _silhouettes(np.sqrt(squared[part]), np.sqrt(other))
        total += exact_parts(np.where(sizes[labels[part]] > 1, values, 0.0))
    return total


def _silhouettes(own: Float64, other: Float64) -> Float64:
    """(n,) in [0, 1], since a row's own centroid is the nearest. 0 if another is as near, or if there is no other."""
    known = np.isfinite(other) & (other > own)
    return np.where(known, 1 - own / np.where(known, other, 1.0), 0.0)


def nearest_other(rows: Rows, centroids: Float32, labels: Int32) -> Float64:
    """Squared Euclidean distance (n,) of each row to the nearest centroid other than its own; infinite if there is none.

    A matrix product rules out all centroids but a few; these are measured exactly, so that a row's distance has the same
    bits whichever rows accompany it.

    Args:
        rows: (n, d).
        centroids: (k, d).
        labels: (n,) each row's own centroid.
    """
    if len(centroids) < 2 or not len(rows):
        return np.full(len(rows), np.inf)
    tensor = kernels.tensor_of(rows)
    norms = kernels.squared_norms(rows)
    screen = kernels.screen(tensor, centroids, norms)
    result = np.empty(len(rows), np.float64)
    for start in range(0, len(rows), screen.batch):
        part = slice(start, min(start + screen.batch, len(rows)))
        batch = tensor[part]
        products = screen.products(batch, torch.from_numpy(norms[part]).float().to(tensor.device))
        own = torch.from_numpy(labels[part]).long()[:, None].to(tensor.device)
        products.scatter_(1, own, torch.inf)
        reach = screen.reach(screen.upper(products.amin(dim=1)))
        row, centroid = (index.cpu().numpy() for index in torch.nonzero(products <= reach[:, None], as_tuple=True))
        result[part] = kernels.settle(batch, centroids, row, centroid)[1]
    return result


def standard(rows: Rows, labels: Int32) -> float | None:
    """Mean standard silhouette over these rows alone, by scikit-learn.

    Args:
        rows: (m, d) sample.
        labels: (m,) clusters of the rows.

    Returns:
        The mean; None if the rows fall into fewer than two clusters, or each into its own.
    """
    clusters = len(np.unique(labels))
    if not 2 <= clusters < len(labels):
        return None
    return float(silhouette_score(kernels.wide(rows).astype(np.float32), labels))
