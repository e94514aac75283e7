"""Clusters of bounded size: no cluster holds more rows than a cap, and no row would rather be where it has the right to be.

Rows prefer near centroids, clusters prefer near rows. Deferred acceptance (Gale and Shapley 1962) then ends in the one
assignment that is stable: a row sits in the nearest cluster that is not full of rows nearer to it. It is the greedy one too,
which takes the pairs of row and centroid from the nearest to the farthest and joins them where the row is free and the
cluster has room.

Each cluster has a threshold, and admits rows whose key (squared distance, then row number) lies below it. A row's cluster is
the nearest that admits it: a pure function of the row, the centroids and the thresholds, so a lost partition only has to be
told the thresholds. At first all rows are admitted everywhere; then every round

1. counts, per cluster, the rows that propose to it, and how many of their keys fall into each of a few bins of equal width
   that end at its threshold;
2. lowers the threshold of each cluster over its cap to the lowest edge of a bin that leaves the cap filled, and zooms its bins
   in on the one that holds the row on the cap (or out, when that row lies below all of them).

Who is rejected in which round does not change the outcome of deferred acceptance, so that the search for the row on the cap
and the proposals overlap. Rounds end when no cluster is over its cap. They do end: both sides go by the same distances, so
once the first m clusters to fill up (in the greedy order) have found their rows, all rows of the next one propose to it, and
it takes at most 2 x 13 rounds to zoom in on its last. That is 26 k rounds at worst. Measured on 55,185 sentence embeddings of
384 dimensions: 33 rounds for k = 256 and a cap of 1.2 n / k, 37 for a cap of n / k; 46 and 71 for k = 2048.

A round sends two numbers per cluster to each partition and brings 33 back. It costs a partition a few passes over its keys,
and a look at the vectors of those rows only that were rejected by all clusters listed for them: in all, 1.1 to 1.5 times as
many rows as there are, so that a balanced assignment took 0.8 seconds where the plain one takes 0.1. (Where rows are streamed
from files, nearly every round reads these again.) A partition remembers 52 bytes per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from divsel_ray.cluster import kernels, repair
from divsel_ray.cluster.exact import Float32, Float64, Grid, Int64, exact_parts, exact_total
from divsel_ray.cluster.kernels import Assignment, Int32
from divsel_ray.cluster.lloyd import Report
from divsel_ray.cluster.screen import Screen
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import Shards
from divsel_ray.errors import InputError

Thresholds = Int64
"""(k,) keys: a cluster admits the rows whose key lies below."""

EVERY_ROW = 0x7F800000 << 32
"""The threshold that admits every row: the key of an infinite distance."""
LARGEST_POOL = 1 << 31
"""Row numbers take the lower half of a key, and counts of rows fit an int32."""
BINS = 32
LISTED = 4
"""Clusters that are listed for a row at once."""
_WIDEST = EVERY_ROW // BINS + 1
_MEMORY = "balance"


class Tally(NamedTuple):
    """A partition's proposals: counts (k,), and how many of their keys lie in each bin, (k, BINS) int32."""

    counts: Int64
    bins: Int32


class _Inertia(NamedTuple):
    parts: Int64


class _Sums(NamedTuple):
    sums: Float64


@dataclass(frozen=True)
class Balanced:
    """A clustering without a cluster above the cap.

    Attributes:
        centroids: (k, d) float32.
        thresholds: (k,) int64; with the centroids, they say where a row belongs (`balanced_labels`).
        counts: (k,) int64 rows per cluster.
        inertia: sum of the squared distances of all rows to the centroids of their clusters.
        rounds: questions to all partitions until no cluster was over its cap.
    """

    centroids: Float32
    thresholds: Thresholds
    counts: Int64
    inertia: float
    rounds: int


@dataclass(frozen=True)
class BalancedFit:
    """The best of several iterations, and the inertia of each."""

    best: Balanced
    inertias: tuple[float, ...]


def _ignore(done: int, total: int, unit: str) -> None:
    pass


def balanced(shards: Shards, centroids: Float32, max_size: int, report: Report = _ignore) -> Balanced:
    """Assign every row to a centroid, at most `max_size` to each; the same for any partition of the rows.

    Args:
        shards: partitions of n finite rows.
        centroids: (k, d).
        max_size: the cap. From the largest cluster of `Shard.assign` on, it changes nothing.
        report: told how many rows are within the caps.

    Raises:
        InputError: k clusters of that size do not hold all rows.
    """
    rows = _check(shards, len(centroids), max_size)
    thresholds = np.full(len(centroids), EVERY_ROW, np.int64)
    widths = np.full(len(centroids), _WIDEST, np.int64)
    rounds = 0
    while True:
        rounds += 1
        found = shards.total(tally, centroids, thresholds, widths)
        excess = int(np.maximum(found.counts - max_size, 0).sum())
        report(rows - excess, rows, "rows")
        if excess == 0:
            break
        thresholds, widths = tighten(thresholds, widths, found, max_size)
    inertia = exact_total(shards.total(_inertia, centroids, thresholds).parts)
    return Balanced(centroids, thresholds, found.counts, inertia, rounds)


def balanced_fit(
    shards: Shards,
    centroids: Float32,
    max_size: int,
    iterations: int,
    grid: Grid,
    report: Report = _ignore,
    *,
    spherical: bool = False,
) -> BalancedFit:
    """Lloyd's iteration with balanced assignments: assign, move the centroids to the means, again; the best one is kept.

    The greedy assignment is not the cheapest of all, so the inertia may rise. An earlier iteration wins a tie, and centroids
    that stand still end the loop.

    Args:
        shards: partitions of n finite rows.
        centroids: (k, d), the first ones; a fit without a cap is a good start.
        max_size: the cap.
        iterations: assignments at most, at least 1.
        grid: what sums of the rows are exact on (`shards.Geometry`).
        report: told of rows within the caps, over all iterations.
        spherical: scale the means to unit length.

    Raises:
        InputError: k clusters of that size do not hold all rows, or there is no iteration.
    """
    if iterations < 1:
        raise InputError(f"iterations={iterations}: expected at least 1, the assignment to the given centroids")
    best: Balanced | None = None
    inertias: list[float] = []
    for iteration in range(iterations):
        found = balanced(shards, centroids, max_size, _shifted(report, iteration, iterations))
        inertias.append(found.inertia)
        if best is None or found.inertia < best.inertia:
            best = found
        if iteration + 1 == iterations:
            break
        sums = shards.total(_sums, centroids, found.thresholds, grid).sums
        centroids = repair.finish(sums, found.counts, found.centroids, spherical=spherical)
        if np.array_equal(centroids, found.centroids):
            break
    assert best is not None
    return BalancedFit(best, tuple(inertias))


def _check(shards: Shards, k: int, max_size: int) -> int:
    """Number of rows."""
    rows = sum(shards.map(len))
    if max_size * k < rows:
        raise InputError(
            f"max_size={max_size}: {k} clusters of at most {max_size} rows hold {max(0, max_size) * k} of {rows}; "
            f"set max_size to at least {-(-rows // max(k, 1))}, or raise the number of clusters"
        )
    if rows > LARGEST_POOL:
        raise InputError(f"{rows} rows: max_size works for up to {LARGEST_POOL}; cluster a sample, or leave max_size out")
    return rows


def _shifted(report: Report, iteration: int, iterations: int) -> Report:
    return lambda done, total, unit: report(iteration * total + done, iterations * total, unit)


def tighten(thresholds: Thresholds, widths: Int64, found: Tally, max_size: int) -> tuple[Thresholds, Int64]:
    """Lower the thresholds of clusters over the cap, never below the key of the row on the cap.

    Args:
        thresholds: (k,).
        widths: (k,) of the bins; the last bin of a cluster ends at its threshold.
        found: the proposals under these thresholds, from all partitions.
        max_size: the cap.

    Returns:
        thresholds (k,), and widths (k,) for the next tally.
    """
    lowest = thresholds - BINS * widths
    below = found.counts - found.bins.sum(axis=1)
    reached = np.concatenate([below[:, None], below[:, None] + found.bins.cumsum(axis=1)], axis=1)
    edge = (reached >= max_size).argmax(axis=1)
    surplus = reached[np.arange(len(edge)), edge] - max_size
    zoomed = np.where(edge > 0, -(-widths // BINS), np.minimum(widths, _WIDEST // BINS) * BINS)
    over = found.counts > max_size
    return (
        np.where(over, lowest + edge * widths, thresholds),
        np.where(over & (surplus > 0), zoomed, widths),
    )


def tally(shard: Shard, centroids: Float32, thresholds: Thresholds, widths: Int64) -> Tally:
    """Count the proposals of a partition's rows, and the keys of those near the thresholds.

    Args:
        shard: the partition.
        centroids: (k, d).
        thresholds: (k,).
        widths: (k,) of the bins; the last bin of a cluster ends at its threshold.
    """
    proposals = _proposals(shard, centroids, thresholds)
    labels, keys = proposals.labels, proposals.keys
    bins = BINS - 1 - (thresholds[labels] - 1 - keys) // widths[labels]
    near = np.flatnonzero(bins >= 0)
    k = len(centroids)
    binned = np.bincount(labels[near] * BINS + bins[near], minlength=k * BINS)
    return Tally(np.bincount(labels, minlength=k), binned.reshape(k, BINS).astype(np.int32))


def balanced_labels(shard: Shard, centroids: Float32, thresholds: Thresholds) -> Assignment:
    """The nearest centroid that admits each row of a partition, and the squared distance to it; ties go to the lowest index.

    Args:
        shard: the partition.
        centroids: (k, d).
        thresholds: (k,), of `balanced` for these rows and centroids.

    Raises:
        InputError: a row is admitted nowhere, because the thresholds belong to other rows or centroids.
    """
    labels = _proposals(shard, centroids, thresholds).labels.astype(np.int32)
    parts = [kernels.own_distances(rows, centroids, labels[at : at + len(rows)]) for at, rows in shard.tensors()]
    return Assignment(labels, np.concatenate(parts or [np.empty(0)]))


def _inertia(shard: Shard, centroids: Float32, thresholds: Thresholds) -> _Inertia:
    return _Inertia(exact_parts(balanced_labels(shard, centroids, thresholds).squared_distances))


def _sums(shard: Shard, centroids: Float32, thresholds: Thresholds, grid: Grid) -> _Sums:
    labels = torch.from_numpy(_proposals(shard, centroids, thresholds).labels)
    sums = torch.zeros(centroids.shape, dtype=torch.float64)
    for start, rows in shard.tensors():
        sums = sums.to(rows.device)
        kernels.accumulate(rows, labels[start : start + len(rows)], sums, grid)
    return _Sums(sums.cpu().numpy())


class _Proposals:
    """Where a partition's rows propose to go under thresholds that only ever fall.

    For each row it holds the first clusters, in the row's order of preference, that admitted it when they were listed. Those
    that reject it later are passed over; when none is left, the row is compared with all centroids again.

    Attributes:
        labels: (n,) int64 clusters.
        keys: (n,) int64 keys in these clusters.
    """

    def __init__(self, shard: Shard, centroids: Float32) -> None:
        n = len(shard)
        self._centroids = np.array(centroids)
        self._thresholds = np.full(len(centroids), EVERY_ROW, np.int64)
        self._first = shard.first
        self._norms = np.concatenate([_norms(rows) for _, rows in shard.tensors()] or [np.empty(0)])
        self._listed = min(LISTED, len(centroids))
        self._clusters = np.zeros((n, self._listed), np.int32)
        self._distances = np.full((n, self._listed), np.inf, np.float32)
        self._screen: Screen | None = None
        self.labels = np.zeros(n, np.int64)
        self.keys = np.full(n, EVERY_ROW, np.int64)

    def leads_to(self, centroids: Float32, thresholds: Thresholds) -> bool:
        """Whether these thresholds can follow from those it knows."""
        return np.array_equal(self._centroids, centroids) and bool((thresholds <= self._thresholds).all())

    def follow(self, shard: Shard, thresholds: Thresholds) -> None:
        """Bring labels and keys up to date.

        Raises:
            InputError: a row is admitted nowhere.
        """
        self._thresholds = np.array(thresholds)
        left = self._propose(np.flatnonzero(self.keys >= thresholds[self.labels]))
        if len(left):
            self._list(shard, left)
            left = self._propose(left)
        if len(left):
            raise InputError(
                f"row {self._first + left[0]} is admitted by no cluster: the thresholds are of other rows or centroids; "
                "balance these first"
            )

    def _propose(self, at: Int64) -> Int64:
        """Send rows to the first listed cluster that admits them; returns those that have none."""
        clusters = self._clusters[at]
        keys = _keys(self._distances[at], self._first + at)
        admitted = keys < self._thresholds[clusters]
        column = admitted.argmax(axis=1)
        found = np.flatnonzero(admitted.any(axis=1))
        self.labels[at[found]] = clusters[found, column[found]]
        self.keys[at[found]] = keys[found, column[found]]
        return np.delete(at, found)

    def _list(self, shard: Shard, at: Int64) -> None:
        """List the first clusters that admit these rows (ascending numbers) now."""
        for start, rows in shard.tensors():
            if self._screen is None:
                self._screen = kernels.screen(rows, self._centroids, self._norms)
            wanted = at[slice(*np.searchsorted(at, [start, start + len(rows)]))]
            for part in kernels.slices(len(wanted), 1, self._screen.batch):
                numbers = wanted[part]
                chosen = rows[torch.from_numpy(numbers - start).to(rows.device)]
                self._clusters[numbers], self._distances[numbers] = self._compare(self._screen, chosen, numbers, self._listed)

    def _compare(self, screen: Screen, rows: torch.Tensor, numbers: Int64, count: int) -> tuple[Int32, Float32]:
        """The first clusters that admit these rows and the squared distances, (m, listed); infinite where there are fewer.

        Out of the `count` that the screen finds nearest, those count that are surely nearer than all others. Where this is
        none, more are compared.
        """
        clusters, bounds = self._screened(screen, rows, numbers, count)
        squared = np.stack([kernels.own_distances(rows, self._centroids, column) for column in clusters.T], axis=1)
        admitted = _keys(squared.astype(np.float32), self._first + numbers) < self._thresholds[clusters]
        squared[~admitted | (squared >= bounds[:, None])] = np.inf
        order = np.lexsort((clusters, squared), axis=1)[:, : self._listed]
        clusters = np.take_along_axis(clusters, order, axis=1)
        distances = np.take_along_axis(squared, order, axis=1).astype(np.float32)
        unsure = np.flatnonzero(np.isinf(distances[:, 0]) & (bounds < np.inf))
        if len(unsure):
            some = rows[torch.from_numpy(unsure).to(rows.device)]
            clusters[unsure], distances[unsure] = self._compare(screen, some, numbers[unsure], 4 * count)
        return clusters, distances

    def _screened(self, screen: Screen, rows: torch.Tensor, numbers: Int64, count: int) -> tuple[Int32, Float64]:
        """About the nearest clusters (m, count) that may admit the rows; no other is nearer than the bounds (m,)."""
        k = len(self._centroids)
        if count >= k:
            return np.tile(np.arange(k, dtype=np.int32), (len(rows), 1)), np.full(len(rows), np.inf)
        products = screen.products(rows, torch.from_numpy(self._norms[numbers]).to(rows.device))
        farthest = (self._thresholds >> 32).astype(np.int32).view(np.float32)
        limits = screen.reach(torch.from_numpy(farthest / 2 * np.float32(1 + 1e-6)).to(rows.device))
        products.masked_fill_(products > limits, torch.inf)
        values, clusters = products.topk(count + 1, dim=1, largest=False)
        nearest = clusters[:, :count].to("cpu", torch.int32).numpy()
        return nearest, 2 * screen.lower(values.amax(dim=1)).double().cpu().numpy()


def _proposals(shard: Shard, centroids: Float32, thresholds: Thresholds) -> _Proposals:
    """Where the rows of a partition propose to go; what it remembers of earlier thresholds only saves time."""
    proposals: _Proposals | None = shard.memory.get(_MEMORY)
    if proposals is None or not proposals.leads_to(centroids, thresholds):
        proposals = shard.memory[_MEMORY] = _Proposals(shard, centroids)
    proposals.follow(shard, thresholds)
    return proposals


def _keys(squared_distances: Float32, numbers: Int64) -> Int64:
    """Keys of rows in clusters, of the shape of the distances, (m, c): non-negative floats order like their bits."""
    return (squared_distances.view(np.int32).astype(np.int64) << 32) | numbers[:, None]


def _norms(rows: torch.Tensor) -> Float64:
    return rows.double().square().sum(dim=1).cpu().numpy()
