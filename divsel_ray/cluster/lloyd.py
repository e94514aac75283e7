"""Lloyd's algorithm with k-means++ over partitions of the rows, wherever those live.

The loop is scikit-learn's `KMeans(algorithm="lloyd")`: assign, update, move rows into empty clusters, stop when the squared
movement of the centroids falls to `tol` x the mean variance of the features. Labels that no longer change leave the sums,
and so the centroids, exactly as they were: that stop is the case of no movement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import numpy as np

from divsel_ray.cluster import initialise, kernels
from divsel_ray.cluster.initialise import Draw
from divsel_ray.cluster.kernels import Float32, Int64
from divsel_ray.cluster.shard import Inspection, Partial, Shard

P = ParamSpec("P")
T = TypeVar("T")
Report = Callable[[int, int, str], None]
"""Called with work done, work in all, and its unit."""


class Shards(Protocol):
    """The partitions of the rows."""

    def map(self, method: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Ask every partition the same question (a method of `Shard`); answers in the order of the rows."""


class LocalShards:
    """Partitions in this process."""

    def __init__(self, shards: list[Shard]) -> None:
        self._shards = shards

    def map(self, method: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Ask one partition after the other."""
        return [method(shard, *args, **kwargs) for shard in self._shards]


@dataclass(frozen=True)
class Settings:
    """What is asked of a fit.

    Attributes:
        k: number of clusters.
        init: k-means++, random rows, or first centroids (k, d).
        n_init: starts; the lowest inertia wins, then the earliest start. First centroids given as an array make one start.
        max_iter: iterations of each start at most.
        tol: stop when the squared movement of all centroids is at most tol x the mean variance of the features.
        seed: of the draws.
    """

    k: int
    init: Literal["k-means++", "random"] | Float32 = "k-means++"
    n_init: int = 1
    max_iter: int = 300
    tol: float = 1e-4
    seed: int = 0

    @property
    def starts(self) -> int:
        """Starts that differ."""
        return self.n_init if isinstance(self.init, str) else 1


@dataclass(frozen=True)
class Fit:
    """The best start: centroids (k, d), and what the last assignment to exactly these centroids gave.

    Attributes:
        centroids: (k, d) float32.
        inertia: sum of the squared distances of all rows to their centroids.
        iterations: updates of the centroids.
        sizes: (k,) rows per cluster.
        converged: False when `max_iter` ended the loop.
    """

    centroids: Float32
    inertia: float
    iterations: int
    sizes: Int64
    converged: bool


def _ignore(done: int, total: int, unit: str) -> None:
    pass


def combine_inspections(parts: list[Inspection]) -> tuple[int, int | None, float]:
    """Number of rows, first bad row or None, and mean variance of the features (not meaningful with a bad row)."""
    rows = sum(part.rows for part in parts)
    bad = next((part.bad for part in parts if part.bad is not None), None)
    mean = _total(parts, "sums") / max(rows, 1)
    mean_square = kernels.exact_total(_total(parts, "squared_norms")) / max(rows, 1)
    return rows, bad, max(0.0, mean_square - float(np.square(mean).sum())) / len(mean)


def fit(shards: Shards, settings: Settings, variance: float, report: Report = _ignore) -> Fit:
    """Cluster finite rows.

    Args:
        shards: partitions that hold at least `settings.k` rows.
        settings: see `Settings`.
        variance: mean variance of the features, the unit of `settings.tol`.
        report: told of centroids drawn and of iterations done, over all starts.
    """
    best: Fit | None = None
    for start in range(settings.starts):
        centroids = first_centroids(shards, settings, start, report)
        result = _run(shards, centroids, settings, variance, _shifted(report, start, settings))
        if best is None or result.inertia < best.inertia:
            best = result
    assert best is not None
    return best


def first_centroids(shards: Shards, settings: Settings, start: int, report: Report = _ignore) -> Float32:
    """The first centroids (k, d) of a start."""
    if not isinstance(settings.init, str):
        return np.asarray(settings.init, np.float32)
    if settings.init == "random":
        drawn = shards.map(Shard.sample, settings.k, Draw(settings.seed, start, 0))
        return initialise.merge(drawn, settings.k).rows
    return _plus_plus(shards, settings, start, report)


def _plus_plus(shards: Shards, settings: Settings, start: int, report: Report) -> Float32:
    """k-means++ (Arthur and Vassilvitskii 2007, section 2.2): one row, then k - 1 rows by squared distance."""
    first = shards.map(Shard.sample, 1, Draw(settings.seed, start, 0))
    centroids = initialise.merge(first, 1).rows
    for step in range(1, settings.k):
        draw = Draw(settings.seed, start, step)
        proposals = shards.map(Shard.propose, centroids[-1:], step - 1, draw)
        kept = [proposal for proposal in proposals if proposal is not None]
        if len(kept) < len(proposals):
            again = shards.map(Shard.propose, centroids, 0, draw)
            kept = [proposal for proposal in again if proposal is not None]
        centroids = np.concatenate([centroids, initialise.merge(kept, 1).rows])
        report(start * settings.k + step + 1, settings.starts * settings.k, "centroids")
    return centroids


def _shifted(report: Report, start: int, settings: Settings) -> Callable[[int], None]:
    done_before, total = start * settings.max_iter, settings.starts * settings.max_iter
    return lambda iteration: report(done_before + iteration, total, "iterations")


def _run(shards: Shards, centroids: Float32, settings: Settings, variance: float, report: Callable[[int], None]) -> Fit:
    converged, iteration = False, 0
    while not converged and iteration < settings.max_iter:
        iteration += 1
        updated = update(shards, centroids)
        movement = np.square(updated.astype(np.float64) - centroids).sum()
        converged = bool(movement <= settings.tol * variance)
        centroids = updated
        report(iteration)
    final = _measure(shards, centroids)
    return Fit(centroids, kernels.exact_total(final.inertia), iteration, final.counts, converged)


def update(shards: Shards, centroids: Float32) -> Float32:
    """One iteration: the centroids (k, d) that follow."""
    sums, counts, _ = _measure(shards, centroids)
    empty = int((counts == 0).sum())
    if empty:
        parts = shards.map(Shard.farthest, centroids, empty)
        sums, counts = kernels.relocate(sums, counts, kernels.merge_farthest(parts, empty))
    return kernels.finish(sums, counts, centroids)


def _measure(shards: Shards, centroids: Float32) -> Partial:
    parts = shards.map(Shard.measure, centroids)
    return Partial(*(_total(parts, name) for name in Partial._fields))


def _total(parts: list[Any], name: str) -> Any:
    """The sum of one field, in the order of the rows."""
    return reduce(np.add, (getattr(part, name) for part in parts))
