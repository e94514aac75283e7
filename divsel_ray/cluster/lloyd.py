"""Lloyd's algorithm over partitions of the rows, wherever they are held.

The loop is that of scikit-learn's `KMeans(algorithm="lloyd")`: assign, update, move rows into empty clusters, and stop when
the squared movement of the centroids falls to `tol` x the mean variance of the features. If no label changes, the sums, and
so the centroids, stay exactly the same: stopping on unchanged labels is the case of no movement.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from divsel_ray.cluster import initialise, progressive, repair
from divsel_ray.cluster.exact import Float32, Int64, exact_total
from divsel_ray.cluster.journal import Journal
from divsel_ray.cluster.shard import Change, Shard
from divsel_ray.cluster.shards import Geometry, Shards

Report = Callable[[int, int, str], None]
"""Called with the work done, the total work and its unit."""
Init = Literal["k-means++", "k-means||", "random"]


@dataclass(frozen=True)
class Settings:
    """Settings of a fit.

    Attributes:
        k: number of clusters.
        init: how the initial centroids are drawn, or an array (k, d) of them.
        n_init: number of starts; the lowest inertia wins, then the earliest start. An array `init` makes one start.
        max_iter: maximum number of iterations over all rows per start.
        tol: stop when the squared movement of all centroids is at most tol x the mean variance of the features.
        seed: seed of the draws.
        spherical: centroids are scaled to unit length (Dhillon and Modha 2001); rows must have unit length.
        progressive: run the first iterations on growing nested samples.
        share: share of the rows used before the last assignment.
        max_size: maximum number of rows per cluster, applied after the fit (`balance.balanced_fit`).
    """

    k: int
    init: Init | Float32 = "k-means++"
    n_init: int = 1
    max_iter: int = 300
    tol: float = 1e-4
    seed: int = 0
    spherical: bool = False
    progressive: bool = False
    share: float = 1.0
    max_size: int | None = None

    @property
    def starts(self) -> int:
        """Number of distinct starts."""
        return self.n_init if isinstance(self.init, str) else 1


class Step(NamedTuple):
    """One iteration.

    Attributes:
        iteration: number within the start, from 1; iterations on samples of a progressive fit count too.
        rows: number of rows used.
        inertia: sum of the squared distances of these rows to the centroids before the update; an estimate on samples, see
            `Updater`.
        moved: number of centroids changed.
        seconds: time from the beginning of the start's first iteration to the end of this one.
    """

    iteration: int
    rows: int
    inertia: float
    moved: int
    seconds: float


@dataclass(frozen=True)
class State:
    """The state of a start.

    Attributes:
        centroids: (k, d) float32.
        stage: index of the current sample in `_shares`.
        iterations: updates on the last sample, by default all rows.
        converged: whether the loop met its tolerance.
        history: every iteration so far.
    """

    centroids: Float32
    stage: int = 0
    iterations: int = 0
    converged: bool = False
    history: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Fit:
    """The best start: centroids (k, d), and the results of the last assignment to exactly these centroids.

    Attributes:
        centroids: (k, d) float32.
        inertia: sum of the squared distances of all rows to their centroids.
        iterations: updates of the centroids on all rows.
        sizes: (k,) rows per cluster.
        converged: False if `max_iter` ended the loop.
        history: iterations of this start.
        thresholds: (k,) with a size cap, see `balance.Balanced`; else None.
    """

    centroids: Float32
    inertia: float
    iterations: int
    sizes: Int64
    converged: bool
    history: tuple[Step, ...] = ()
    thresholds: Int64 | None = None


def _ignore(done: int, total: int, unit: str) -> None:
    pass


def fit(shards: Shards, settings: Settings, geometry: Geometry, report: Report = _ignore, journal: Journal | None = None) -> Fit:
    """Cluster finite rows.

    Args:
        shards: partitions of at least `settings.k` rows.
        settings: see `Settings`.
        geometry: geometry of all rows.
        report: receives the centroids drawn and the iterations done, over all starts.
        journal: keeps the state after each iteration; a fit that finds its own state there resumes from it.
    """
    saved = _unpack(journal.read()) if journal else Saved()
    best, state = saved.best, saved.state
    settings = _with_enough_rows(shards, settings)
    seen = progressive.view(shards, settings.seed, settings.share)
    for start in range(saved.start, settings.starts):
        if state is None:
            state = State(first_centroids(seen, settings, start, geometry, report))
        told = _Told(report, journal, start, settings, best)
        result = _finish(shards, _run(shards, state, settings, geometry, told))
        best = result if best is None or result.inertia < best.inertia else best
        state = None
    assert best is not None
    return best


def share_of(fit_rows: int | None, rows: int) -> float:
    """`fit_rows` as a share of all rows; None stands for all."""
    return 1.0 if fit_rows is None else min(1.0, fit_rows / rows)


def _with_enough_rows(shards: Shards, settings: Settings) -> Settings:
    """Use all rows if the sample has fewer rows than there are clusters."""
    if settings.share < 1 and sum(progressive.view(shards, settings.seed, settings.share).map(len)) < settings.k:
        return replace(settings, share=1.0)
    return settings


def first_centroids(shards: Shards, settings: Settings, start: int, geometry: Geometry, report: Report = _ignore) -> Float32:
    """The initial centroids (k, d) of a start."""
    if not isinstance(settings.init, str):
        return np.asarray(settings.init, np.float32)
    k, seed = settings.k, settings.seed
    if settings.init == "random":
        return initialise.random_rows(shards, k, seed, start)
    draw = initialise.plus_plus if settings.init == "k-means++" else initialise.parallel
    centroids = draw(shards, k, seed, start, geometry, lambda drawn: report(start * k + drawn, settings.starts * k, "centroids"))
    initialise.forget(shards)
    return centroids


@dataclass(frozen=True)
class _Told:
    """Reports a start's iterations and writes them to the journal."""

    report: Report
    journal: Journal | None
    start: int
    settings: Settings
    best: Fit | None

    def __call__(self, state: State) -> None:
        most = self.settings.max_iter
        self.report(self.start * most + state.iterations, self.settings.starts * most, "iterations")
        if self.journal:
            self.journal.write(_pack(Saved(self.start, state, self.best)))


def _run(shards: Shards, state: State, settings: Settings, geometry: Geometry, told: Callable[[State], None]) -> State:
    shares = _shares(settings, geometry)
    before = state.history[-1].seconds if state.history else 0.0
    began = time.perf_counter() - before
    updater = _updater(shards, settings, geometry, shares[state.stage])
    while not state.converged and state.iterations < settings.max_iter:
        update = updater.step(state.centroids)
        step = Step(len(state.history) + 1, update.rows, update.inertia, update.moved, time.perf_counter() - began)
        state = replace(state, centroids=update.centroids, history=(*state.history, step))
        if state.stage < len(shares) - 1:
            if progressive.settled(state.history, update.movement):
                state = replace(state, stage=state.stage + 1)
                updater = _updater(shards, settings, geometry, shares[state.stage])
        else:
            converged = update.movement <= settings.tol
            state = replace(state, iterations=state.iterations + 1, converged=converged)
        told(state)
    return state


def _updater(shards: Shards, settings: Settings, geometry: Geometry, share: float) -> Updater:
    if share >= 1:
        shards.map(progressive.forget)
    return Updater(progressive.view(shards, settings.seed, share), geometry, spherical=settings.spherical)


def _shares(settings: Settings, geometry: Geometry) -> tuple[float, ...]:
    """Shares of the rows to iterate on, one after the other."""
    samples = progressive.shares(geometry.rows, settings.k) if settings.progressive else ()
    return (*(share for share in samples if share < settings.share), settings.share)


class Update(NamedTuple):
    """The result of an iteration.

    Attributes:
        centroids: (k, d) new centroids.
        rows: number of rows used.
        inertia: inertia of these rows with the old centroids.
        moved: number of centroids that changed.
        movement: squared movement of the centroids, divided by the mean variance of the features.
    """

    centroids: Float32
    rows: int
    inertia: float
    moved: int
    movement: float


class Updater:
    """Runs one iteration after the other: assign, update, repair emptied clusters.

    Partitions report only clusters that gain or lose rows; the sums of all rows are kept here. The inertia follows from
    them, `sum |x|^2 - sum_j (2 c_j . S_j - n_j |c_j|^2)`, without reading every row. On samples, the mean norm of all rows
    is used.
    """

    def __init__(self, shards: Shards, geometry: Geometry, *, spherical: bool = False) -> None:
        self._shards, self._geometry, self._spherical = shards, geometry, spherical
        self._before: Float32 | None = None
        self._due: Int64 = np.empty(0, np.int64)
        self._sums, self._terms = np.empty((0, 0)), np.empty(0)
        self._counts: Int64 = np.empty(0, np.int64)
        self._variance = 0.0

    def step(self, centroids: Float32) -> Update:
        """Run one iteration from the centroids (k, d)."""
        changes = self._shards.map(Shard.change, self._before, centroids, self._geometry.grid)
        due = self._enter(changes, centroids)
        rows = int(self._counts.sum())
        inertia = math.fsum([self._geometry.squares * (rows / self._geometry.rows), *-self._terms])
        updated = centroids.copy()
        empty = int((self._counts == 0).sum())
        if empty:
            far = repair.merge_farthest(self._shards.map(Shard.farthest, centroids, empty), empty)
            sums, counts = repair.relocate(self._sums, self._counts, far, self._geometry.grid)
            updated = repair.finish(sums, counts, centroids, spherical=self._spherical)
        else:
            updated[due] = repair.finish(self._sums[due], self._counts[due], centroids[due], spherical=self._spherical)
        moved = np.flatnonzero((updated != centroids).any(axis=1))
        # Relocated centroids are not the means of their rows, so all are due again.
        self._before, self._due = centroids, np.arange(len(centroids)) if empty else moved
        movement = math.fsum(np.square(updated[moved].astype(np.float64) - centroids[moved]).sum(axis=1))
        return Update(updated, rows, max(inertia, 0.0), len(moved), _ratio(movement, self._variance))

    def _enter(self, changes: list[Change], centroids: Float32) -> Int64:
        """Apply changes to the sums and to the inertia's terms; returns the clusters whose mean may have changed."""
        k, d = centroids.shape
        if self._before is None:
            self._sums, self._counts, self._terms = np.zeros((k, d)), np.zeros(k, np.int64), np.zeros(k)
            self._due = np.arange(k)
        for change in changes:
            self._sums[change.clusters] += change.sums
            self._counts[change.clusters] += change.counts
        if self._before is None:
            self._variance = self._measure_variance()
        due = np.unique(np.concatenate([self._due, *(change.clusters for change in changes)]))
        means = centroids[due].astype(np.float64)
        self._terms[due] = (2 * (means * self._sums[due]).sum(axis=1)) - self._counts[due] * np.square(means).sum(axis=1)
        return due

    def _measure_variance(self) -> float:
        """Mean variance of the features; constant, since rows only move between clusters."""
        mean = self._sums.sum(axis=0) / self._counts.sum()
        squares = self._geometry.squares / self._geometry.rows
        return max(squares - math.fsum(np.square(mean)), 0.0) / self._geometry.dimension


def _ratio(movement: float, variance: float) -> float:
    """Movement relative to the variance; infinite for any movement if the rows do not differ."""
    return movement / variance if variance else math.inf if movement else 0.0


def _finish(shards: Shards, state: State) -> Fit:
    """Fill empty clusters and compute the exact inertia."""
    centroids, counts = fill(shards, state.centroids)
    inertia = exact_total(np.sum(shards.map(Shard.inertia, centroids), axis=0))
    return Fit(centroids, inertia, state.iterations, counts, state.converged, state.history)


def fill(shards: Shards, centroids: Float32) -> tuple[Float32, Int64]:
    """Move centroids without rows onto the farthest rows, until no cluster is empty or every row lies on its centroid.

    A centroid that lies on a row keeps it, so every round fills at least one more cluster permanently; a round that does not
    is the last.

    Returns:
        centroids (k, d) and sizes (k,).
    """
    before = len(centroids) + 1
    while True:
        counts = np.sum(shards.map(Shard.counts, centroids), axis=0)
        empty = np.flatnonzero(counts == 0)
        if not 0 < len(empty) < before:
            return centroids, counts
        before = len(empty)
        far = repair.merge_farthest(shards.map(Shard.farthest, centroids, len(empty)), len(empty))
        _, firsts = np.unique(far.rows, axis=0, return_index=True)
        if not len(firsts):
            return centroids, counts
        centroids = centroids.copy()
        centroids[empty[: len(firsts)]] = far.rows[np.sort(firsts)]


@dataclass(frozen=True)
class Saved:
    """The contents of a journal: the number of the current start, its state, and the best of the previous starts."""

    start: int = 0
    state: State | None = None
    best: Fit | None = None


def _pack(saved: Saved) -> dict[str, Any]:
    arrays: dict[str, Any] = {"start": saved.start}
    for name, part in (("state", saved.state), ("best", saved.best)):
        if part is not None:
            values = {field.name: getattr(part, field.name) for field in fields(part)}
            arrays |= {f"{name}.{key}": np.array(value) for key, value in values.items() if value is not None}
    return arrays


def _unpack(arrays: dict[str, Any] | None) -> Saved:
    if arrays is None:
        return Saved()
    state, best = _fields(arrays, "state"), _fields(arrays, "best")
    return Saved(int(arrays["start"]), State(**state) if state else None, Fit(**best) if best else None)


def _fields(arrays: dict[str, Any], name: str) -> dict[str, Any]:
    found = {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}
    return {key: _plain(key, value) for key, value in found.items()}


def _plain(name: str, value: Any) -> Any:
    if name == "history":
        return tuple(Step(int(row[0]), int(row[1]), float(row[2]), int(row[3]), float(row[4])) for row in value)
    return value if value.ndim else value.item()


def identity(settings: Settings, geometry: Geometry, names: Sequence[str]) -> str:
    """Identity of a fit in a journal; any other setting, file, row or order of the rows yields another one."""
    asked = asdict(settings)
    if not isinstance(settings.init, str):
        asked["init"] = hashlib.sha256(np.ascontiguousarray(settings.init).tobytes()).hexdigest()
    return hashlib.sha256(repr((asked, geometry, tuple(names))).encode()).hexdigest()
