"""One partition's rows and the questions of k-means they answer.

An answer depends on the rows and the arguments alone. What a shard remembers (its last assignment, its distances to the
centroids drawn so far) only saves time: a shard that was lost and read again gives the same answers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from divsel_ray.cluster import initialise, kernels
from divsel_ray.cluster.initialise import Draw, Sample
from divsel_ray.cluster.kernels import Assignment, Farthest, Float32, Float64, Int64, Rows


class Inspection(NamedTuple):
    """What is known of rows before the first iteration.

    Attributes:
        rows: how many there are.
        bad: global number of the first row that is not finite or too large, or None.
        sums: (d,) sum of the rows.
        squared_norms: exact sum of the squared norms, in parts.
    """

    rows: int
    bad: int | None
    sums: Float64
    squared_norms: Int64


class Partial(NamedTuple):
    """A partition's share of one iteration: sums (k, d), counts (k,), exact sum of the squared distances, in parts."""

    sums: Float64
    counts: Int64
    inertia: Int64


class Shard:
    """The rows (n, d) of one partition, the first of which has global number `first`."""

    def __init__(self, rows: Rows, first: int = 0) -> None:
        self._rows = rows
        self._first = first
        self._assigned: tuple[Float32, Assignment] | None = None
        self._drawn: tuple[Any, Float64] | None = None

    def inspect(self) -> Inspection:
        """Count the rows, look for bad ones, and measure what the variance needs."""
        with np.errstate(over="ignore", invalid="ignore"):
            norms = kernels.squared_norms(self._rows)
        bad = np.flatnonzero(~(norms <= kernels.LARGEST_SQUARED_NORM))
        if len(bad):
            nothing = np.zeros(self._rows.shape[1])
            return Inspection(len(norms), int(bad[0]) + self._first, nothing, kernels.exact_parts(nothing[:0]))
        sums, _ = kernels.accumulate(self._rows, np.zeros(len(norms), np.int32), 1)
        return Inspection(len(norms), None, sums[0], kernels.exact_parts(norms))

    def assign(self, centroids: Float32) -> Assignment:
        """Labels and squared distances of the rows."""
        if self._assigned is None or not np.array_equal(self._assigned[0], centroids):
            self._assigned = (np.array(centroids), kernels.assign(self._rows, centroids))
        return self._assigned[1]

    def measure(self, centroids: Float32) -> Partial:
        """Assign the rows and sum them up by cluster."""
        labels, squared_distances = self.assign(centroids)
        sums, counts = kernels.accumulate(self._rows, labels, len(centroids))
        return Partial(sums, counts, kernels.exact_parts(squared_distances))

    def farthest(self, centroids: Float32, count: int) -> Farthest:
        """The rows farthest from their centroids."""
        return kernels.farthest(self._rows, self.assign(centroids), count, self._first)

    def sample(self, count: int, draw: Draw) -> Sample:
        """Uniform draw of `count` rows."""
        return initialise.sample(self._rows, np.ones(len(self._rows)), count, draw, self._first)

    def propose(self, centroids: Float32, known: int, draw: Draw) -> Sample | None:
        """The partition's next centroid of k-means++: one row, with probability proportional to its squared distance.

        Args:
            centroids: (m, d), those drawn since this shard was last asked.
            known: how many it was told before; with 0, `centroids` are all there are.
            draw: what the random numbers are hashed from.

        Returns:
            None when the shard does not remember the `known` centroids: ask again with all of them.
        """
        state = (draw.seed, draw.start, known)
        if known and (self._drawn is None or self._drawn[0] != state):
            return None
        nearest = np.full(len(self._rows), np.inf) if known == 0 or self._drawn is None else self._drawn[1]
        for centroid in centroids:
            nearest = np.minimum(nearest, kernels.pair_distances(self._rows, centroid))
        self._drawn = ((draw.seed, draw.start, known + len(centroids)), nearest)
        return initialise.sample(self._rows, nearest, 1, draw, self._first)
