"""Several k from one fit: Ward's agglomeration (Ward 1963) of fine clusters into coarser, nested ones.

Joining clusters A and B raises the inertia by |A||B| / (|A| + |B|) x the squared distance of their means, whatever their
rows. The inertia of a coarse clustering is therefore that of the fine one plus the costs of its merges, and no row has to
be read. (The fine centroids must be the means of their rows, as they are once Lloyd's algorithm has converged.)

Pairs that are each other's nearest neighbours are merged together, round after round (Murtagh 1983): Ward's cost is
reducible (a merged cluster is never nearer to a third one than the nearer of its two parts was), so the rounds build the
same tree as merging the globally cheapest pair each time. A neighbour is kept until it is merged itself. A float64 matrix
product screens the neighbours, and pairs within its rounding error are settled by distances computed pair by pair, ties
going to the lowest index, so the order in which a BLAS sums has no effect.

Neighbours are searched only where a merge may be cheapest: a neighbour lost to a merge leaves a lower bound on the cost of
the next one. In total about 2 k^2 pairs are compared, and 10 k^2 on data without structure and with very unequal sizes;
k = 8192 at d = 384 takes 10 seconds of CPU time (40 on such data) and less than 200 MB, as no distance matrix is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from divsel_ray.cluster.exact import Float32, Float64, Int64
from divsel_ray.cluster.kernels import CACHED_ELEMENTS, Int32, assign, slices
from divsel_ray.errors import InputError

Pairs = npt.NDArray[np.int64]
"""Two clusters per line, (m, 2), each identified by one of its fine clusters."""

_SCREEN_ELEMENTS = 1 << 21
_ROUNDOFF = 2.0**-53
_FEWEST, _SHARE = 64, 8


class Coarse(NamedTuple):
    """A coarser clustering.

    Attributes:
        labels: (k_fine,) int32 coarse cluster of each fine one, numbered by lowest fine index.
        centroids: (k_coarse, d) float32 means weighted by size; the first centroid where only empty clusters were merged.
        sizes: (k_coarse,) int64 rows per cluster.
        added_inertia: increase in inertia over the fine clustering.
    """

    labels: Int32
    centroids: Float32
    sizes: Int64
    added_inertia: float


class MergeTree(NamedTuple):
    """The order in which fine clusters are merged until one is left.

    Attributes:
        centroids: (k, d) float32 centroids of the fine clusters.
        sizes: (k,) int64 rows per fine cluster.
        pairs: (k - 1, 2) int64; merge i joins the clusters that contain these two fine clusters, the second of which occurs
            in no later pair.
        costs: (k - 1,) float64 increase in inertia by each merge.
    """

    centroids: Float32
    sizes: Int64
    pairs: Pairs
    costs: Float64

    def cut(self, k_coarse: int) -> Coarse:
        """The clustering into `k_coarse` clusters; each cut refines every coarser one.

        Raises:
            InputError: `k_coarse` is outside 1 to k.
        """
        k = len(self.sizes)
        if not 1 <= k_coarse <= k:
            raise InputError(f"k_coarse={k_coarse}: expected 1 to {k}, the number of fine clusters; fit a larger k first")
        done = k - k_coarse
        labels = _components(self.pairs[:done], k)
        sizes = np.zeros(k_coarse, np.int64)
        np.add.at(sizes, labels, self.sizes)
        return Coarse(labels, self._means(labels, sizes), sizes, math.fsum(self.costs[:done]))

    def _means(self, labels: Int32, sizes: Int64) -> Float32:
        sums = np.zeros((len(sizes), self.centroids.shape[1]))
        np.add.at(sums, labels, self.sizes[:, None] * self.centroids.astype(np.float64))
        lowest = np.unique(labels, return_index=True)[1]
        means = sums / np.maximum(sizes, 1)[:, None]
        return np.where(sizes[:, None] > 0, means, self.centroids[lowest]).astype(np.float32)


def merge_tree(centroids: Float32, sizes: Int64) -> MergeTree:
    """Build Ward's tree over clusters, cheapest merge first; the order of equal costs depends on the input alone.

    An empty cluster has no weight: it joins its nearest neighbour at no cost, before all others, and does not move the mean.

    Args:
        centroids: (k, d) finite means of the clusters' rows.
        sizes: (k,) rows per cluster, not all zero.

    Raises:
        InputError: sizes and centroids do not match, or contain invalid values.
    """
    centroids, sizes = np.asarray(centroids, np.float32), np.asarray(sizes, np.int64)
    _check(centroids, sizes)
    filled, empty = np.flatnonzero(sizes), np.flatnonzero(sizes == 0)
    hosts = filled[assign(centroids[empty], centroids[filled]).labels]
    pairs, costs = _agglomerate(centroids[filled].astype(np.float64), sizes[filled].astype(np.float64))
    whole = np.concatenate([np.stack([hosts, empty], axis=1), filled[pairs]])
    return MergeTree(centroids, sizes, whole, np.concatenate([np.zeros(len(empty)), costs]))


def _check(centroids: Float32, sizes: Int64) -> None:
    if centroids.ndim != 2 or sizes.shape != centroids.shape[:1]:
        raise InputError(
            f"centroids: shape {centroids.shape}, sizes: shape {sizes.shape}; expected (k, d) and (k,), one size per centroid"
        )
    if not (sizes >= 0).all() or not sizes.any():
        raise InputError("sizes: negative or all zero; expected the number of rows of each cluster")
    if not np.isfinite(centroids).all():
        raise InputError(f"centroid {int(np.isfinite(centroids).all(axis=1).argmin())}: contains a NaN or infinite value")


class _Forest:
    """The remaining clusters, each in the slot of its lowest fine cluster.

    Attributes: means (m, d) and weights (m,) of the slots, whether each is active, and its nearest neighbour, -1 where it
    has yet to be found.
    """

    def __init__(self, means: Float64, weights: Float64) -> None:
        self.means, self.weights = means.copy(), weights.copy()
        self.heights, self.bounds = np.zeros(len(weights)), np.zeros(len(weights))
        self.active = np.ones(len(weights), np.bool_)
        self.neighbours = np.full(len(weights), -1)

    def mutual_pairs(self) -> Pairs:
        """The known pairs of nearest neighbours, (m, 2), lower slot first; at least one while two clusters are left."""
        while True:
            stale = self._find_neighbours()
            slots = np.flatnonzero(self.active & (self.neighbours >= 0))
            theirs = self.neighbours[slots]
            mutual = (self.neighbours[theirs] == slots) & (slots < theirs)
            if mutual.any():
                return np.stack([slots[mutual], theirs[mutual]], axis=1)
            if not stale:
                # Only rounding can hide every pair. With all neighbours recomputed, the globally cheapest pair is mutual.
                self.neighbours[:] = -1

    def _find_neighbours(self) -> int:
        """Find the neighbours of the clusters most likely to be cheapest; returns the number of clusters still without one."""
        slots = np.flatnonzero(self.active)
        stale = slots[self.neighbours[slots] < 0]
        asked = stale[np.argsort(self.bounds[stale], kind="stable")[: max(_FEWEST, len(stale) // _SHARE)]]
        found = slots[_neighbours(self.means[slots], self.weights[slots], np.searchsorted(slots, asked))]
        self.neighbours[asked] = found
        self.bounds[asked] = _costs(self.means, self.weights, asked, found)
        return len(stale) - len(asked)

    def merge(self, pairs: Pairs) -> tuple[Float64, Float64]:
        """Merge each pair into the slot of its first; returns the costs (m,), and the heights (m,) to sort the merges by."""
        one, other = pairs.T
        weights = self.weights[one] + self.weights[other]
        costs = _costs(self.means, self.weights, one, other)
        # Rounding may make a merge seem cheaper than one it builds on.
        heights = np.maximum(costs, np.maximum(self.heights[one], self.heights[other]))
        sums = self.weights[one, None] * self.means[one] + self.weights[other, None] * self.means[other]
        self.means[one], self.weights[one], self.heights[one] = sums / weights[:, None], weights, heights
        self.bounds[one] = costs
        self.active[other] = False
        touched = np.zeros(len(self.active), np.bool_)
        touched[pairs] = True
        self.neighbours[touched | touched[self.neighbours]] = -1
        return costs, heights


def _agglomerate(means: Float64, weights: Float64) -> tuple[Pairs, Float64]:
    """Merge all slots; returns the pairs (m - 1, 2) and their costs (m - 1,), cheapest first."""
    forest = _Forest(means, weights)
    pairs, costs, heights = [np.empty((0, 2), np.int64)], [np.empty(0)], [np.empty(0)]
    for _ in range(len(weights) - 1):
        if forest.active.sum() == 1:
            break
        pairs.append(forest.mutual_pairs())
        cost, height = forest.merge(pairs[-1])
        costs.append(cost)
        heights.append(height)
    order = np.argsort(np.concatenate(heights), kind="stable")
    return np.concatenate(pairs)[order], np.concatenate(costs)[order]


def _neighbours(means: Float64, weights: Float64, asked: Int64) -> Int64:
    """For each of the `asked` clusters (m,), the other cluster that is cheapest to merge with; ties go to the lowest."""
    found = np.empty(len(asked), np.int64)
    norms = np.square(means).sum(axis=1)
    for part in slices(len(asked), len(means), _SCREEN_ELEMENTS):
        at = asked[part]
        error = (means.shape[1] + 8) * 4 * _ROUNDOFF * (np.sqrt(norms[at]) + np.sqrt(norms.max())) ** 2
        shares = weights / (weights + weights[at, None])
        bounds = means[at] @ means.T
        bounds *= -2
        bounds += norms
        bounds += (norms[at] - error)[:, None]
        bounds *= shares
        bounds[np.arange(len(at)), at] = np.inf
        lowest = bounds.argmin(axis=1)
        each = np.arange(len(at)), lowest
        found[part] = lowest
        candidates = bounds <= (bounds[each] + 2 * shares[each] * error)[:, None]
        doubtful = np.flatnonzero(np.count_nonzero(candidates, axis=1) > 1)
        found[part.start + doubtful] = _settle(means, weights, at[doubtful], candidates[doubtful])
    return found


def _settle(means: Float64, weights: Float64, asked: Int64, candidates: npt.NDArray[np.bool_]) -> Int64:
    row, other = np.nonzero(candidates)
    costs = np.empty(len(row))
    for part in slices(len(row), means.shape[1], CACHED_ELEMENTS):
        costs[part] = _costs(means, weights, asked[row[part]], other[part])
    order = np.lexsort((other, costs, row))
    return other[order[np.flatnonzero(np.diff(row[order], prepend=-1))]]


def _costs(means: Float64, weights: Float64, one: Int64, other: Int64) -> Float64:
    """Increase in inertia (m,) by merging these pairs; the same bits when the two clusters are exchanged."""
    factors = weights[one] * weights[other] / (weights[one] + weights[other])
    return factors * np.square(means[one] - means[other]).sum(axis=1)


def _components(pairs: Pairs, k: int) -> Int32:
    """Connected components of `k` nodes: labels (k,) numbered by lowest member. The second of a pair is in no later pair."""
    roots = np.arange(k)
    roots[pairs[:, 1]] = pairs[:, 0]
    while not np.array_equal(roots, roots[roots]):
        roots = roots[roots]
    _, firsts, components = np.unique(roots, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts))[components].astype(np.int32)
