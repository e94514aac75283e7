"""k-means on Ray: shard actors keep the rows, a coordinator actor runs the loop over them, the driver watches.

A killed actor is restarted, rereads its rows and repeats the interrupted call; answers depend on the rows and arguments
alone, so the result stays the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import ray
import torch

from divsel_ray.actors import RESTARTED
from divsel_ray.cluster import balance, lloyd, rows, shards
from divsel_ray.cluster.actors import CALL_SECONDS, Blocks, Coordinator, Holding, RayShards, ShardActor, Source, WholeActor
from divsel_ray.cluster.journal import Journal
from divsel_ray.cluster.kernels import Rows
from divsel_ray.cluster.lloyd import Fit, Settings
from divsel_ray.cluster.shards import Geometry, LocalShards, Shards
from divsel_ray.config import Workers
from divsel_ray.errors import InputError, JobError, last_line
from divsel_ray.failures import explained
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster, await_ready

T = TypeVar("T")
Mode = Literal["auto", "memory", "streaming"]

POLL_SECONDS = 0.2
MEMORY_SHARE = 0.6
"""Share of the cluster's memory that rows may fill before they are streamed."""
BALANCING_ITERATIONS = 5
"""Number of assignments with a size cap; the best is kept."""
STATE_BYTES = 64
"""State that a shard keeps per row, besides the row."""
ROWS_PER_SHARD = 1 << 14
"""With fewer rows, a pass takes less time than the call to the shard."""


def default_shards(count: int, workers: Workers, cluster: Cluster) -> int:
    """Default number of partitions for `count` rows: one for each actor that the cluster has room for."""
    return cluster.count(workers, -(-count // ROWS_PER_SHARD))


@contextlib.contextmanager
def start_shards(
    sources: Sequence[Source],
    cluster: Cluster,
    holding: Holding | None = None,
    *,
    coordinated: bool = True,
    folder: Path | None = None,
) -> Iterator[RayShards]:
    """Start shard actors for these partitions, as many as the cluster has room for, and a coordinator that needs no CPU.

    On a single machine without GPUs they are threads of one actor, which is its own coordinator. The actors end with the
    block. Without `coordinated` there is no coordinator, and no fit can run. `folder` is their output folder, for messages.

    Raises:
        JobError: the cluster could not schedule the actors, Ray lost them for good, or a disk is full.
    """
    holding = holding or Holding()
    count = cluster.count(holding.workers, len(sources))
    together = cluster.nodes == 1 and not cluster.gpus_per_worker(holding.workers)
    asked = holding.workers.model_copy(update={"cpus": count * holding.workers.cpus}) if together else holding.workers
    actors, coordinators = (
        _start_whole(sources, holding, count) if together else _start_apart(sources, cluster, holding, count, coordinated)
    )
    try:
        with explained("k-means", folder):
            await_ready([actor.ready.remote() for actor in actors], "cluster", asked, cluster.placement_timeout_s)
            yield RayShards(actors, *coordinators)
    except ray.exceptions.RayError as error:
        raise JobError(f"k-means: {last_line(error)}") from error
    finally:
        for actor in dict.fromkeys((*actors, *coordinators)):
            ray.kill(actor)


def _start_whole(sources: Sequence[Source], holding: Holding, threads: int) -> tuple[list[Any], list[Any]]:
    # Besides the loop's thread, one for each task, and one that reports the loop's state.
    options = {"num_cpus": threads * holding.workers.cpus, "max_concurrency": threads + 2, **RESTARTED}
    actor = ray.remote(**options)(WholeActor).remote(list(sources), holding, threads)
    return [actor], [actor]


def _start_apart(
    sources: Sequence[Source], cluster: Cluster, holding: Holding, count: int, coordinated: bool
) -> tuple[list[Any], list[Any]]:
    workers = holding.workers
    options = {"num_cpus": workers.cpus, "num_gpus": cluster.gpus_per_worker(workers), **RESTARTED}
    actor_class = ray.remote(**options)(ShardActor)
    actors = [actor_class.remote(list(sources[low:high]), holding) for low, high in rows.bounds(len(sources), count)]
    coordinators = [ray.remote(num_cpus=0, max_concurrency=2, **RESTARTED)(Coordinator).remote(actors)] if coordinated else []
    return actors, coordinators


def fit(held: RayShards, settings: Settings, geometry: Geometry, progress: Progress, journal: Journal | None = None) -> Fit:
    """Cluster rows that `check_rows` has accepted.

    Args:
        held: the partitions.
        settings: see `lloyd.Settings`.
        geometry: geometry of all rows.
        progress: receives the number of centroids drawn, then of iterations.
        journal: see `lloyd.fit`; its file must be on storage that every node can read and write.

    Raises:
        InputError: there are fewer rows than clusters.
        JobError: the coordinator was lost for good.
    """
    if settings.k > geometry.rows:
        raise too_many_clusters(settings.k, geometry.rows)
    return coordinate(held, run_fit, (settings, geometry, journal), progress)


def run_fit(held: Shards, settings: Settings, geometry: Geometry, journal: Journal | None, report: lloyd.Report) -> Fit:
    """Run `lloyd.fit` and, with a size cap, `balance.balanced_fit`; called by the coordinator."""
    found = lloyd.fit(held, settings, geometry, report, journal)
    if settings.max_size is None:
        return found
    size, most, spherical = settings.max_size, BALANCING_ITERATIONS, settings.spherical
    best = balance.balanced_fit(held, found.centroids, size, most, geometry.grid, report, spherical=spherical).best
    return replace(found, centroids=best.centroids, inertia=best.inertia, sizes=best.counts, thresholds=best.thresholds)


def coordinate(held: RayShards, loop: Callable[..., T], args: tuple[Any, ...], progress: Progress) -> T:
    """Have the coordinator run a loop over the partitions.

    Args:
        held: the partitions.
        loop: a function of this package, called with the partitions, `args` and a report function.
        args: plain values and k-sized arrays.
        progress: receives the loop's reports.
    """
    result = held.coordinator.loop.remote(loop, *args)
    _watch(held.coordinator, result, progress)
    return ray.get(result)


def _watch(coordinator: Any, result: Any, progress: Progress) -> None:
    finished: list[Any] = []
    while not finished:
        finished, _ = ray.wait([result], timeout=POLL_SECONDS)
        state = ray.get(coordinator.state.remote(), timeout=CALL_SECONDS)
        if state is not None:
            progress.advance(*state)


def check_rows(held: Shards, dimension: int, name_row: Callable[[int], str], *, directions: bool = False) -> Geometry:
    """Check that all rows are usable, and return their geometry.

    Args:
        held: the partitions.
        dimension: features of a row.
        name_row: returns the name of a row in messages, given its global number.
        directions: whether every row must have a direction.

    Raises:
        InputError: a row is not finite, or its norm exceeds 1e18; with `directions` also if a row is zero.
    """
    findings = shards.inspect(held, dimension)
    if findings.bad is not None:
        value = "a NaN, infinite or huge value; expected a finite vector; fix or remove that row"
        raise InputError(f"{name_row(findings.bad)}: {value}")
    if directions and findings.zero is not None:
        raise InputError(
            f"{name_row(findings.zero)}: a vector of zeros has no direction; remove that row or use metric euclidean"
        )
    return findings.geometry


def too_many_clusters(k: int, count: int) -> InputError:
    """The error for more clusters than rows."""
    return InputError(f"k {k} exceeds the pool's {count} rows; lower cluster.k")


@dataclass(frozen=True)
class Plan:
    """Whether rows are streamed rather than kept, and the reason in one line."""

    streamed: bool
    reason: str


def plan_memory(files: rows.Files, cluster: Cluster, mode: Mode) -> Plan:
    """Plan to keep the rows of these files in memory if the cluster has room for them, else to stream them."""
    needed = files.rows * (files.dimension * (2 if files.half else 4) + STATE_BYTES) / 2**30
    available = MEMORY_SHARE * cluster.memory_gib
    streamed = needed > available if mode == "auto" else mode == "streaming"
    fits = f"{files.rows:,} vectors take {needed:.2g} GiB, {available:.2g} GiB are available for them"
    manner = "streamed from Parquet on every pass" if streamed else "kept in memory"
    return Plan(streamed, f"{fits}: {manner}" if mode == "auto" else f"{fits}: {manner}, as configured")


def run_all(held: Shards, calls: Sequence[tuple[Any, ...]], report: lloyd.Report, unit: str) -> list[Any]:
    """Run independent tasks on the workers that hold the partitions.

    Args:
        held: the partitions.
        calls: for each task, a function of this package and its arguments; object references are resolved.
        report: receives the number of tasks done.
        unit: plural noun for the tasks' results.

    Returns:
        The results, in the order of the calls.

    Raises:
        JobError: no task finished for an hour.
    """
    if isinstance(held, LocalShards):
        return held.each(_call, calls, lambda done: report(done, len(calls), unit))
    assert isinstance(held, RayShards)
    asked = [held.actors[at % len(held.actors)].run.remote(*call) for at, call in enumerate(calls)]
    pending = asked
    while pending:
        done, pending = ray.wait(pending, timeout=CALL_SECONDS)
        if not done:
            raise JobError(f"k-means: no {unit} finished in {CALL_SECONDS:g} s; check whether the cluster has lost nodes")
        ray.get(done)
        report(len(asked) - len(pending), len(asked), unit)
    answers: list[Any] = ray.get(asked)
    return answers


def _call(call: tuple[Any, ...]) -> Any:
    task, *args = (ray.get(value) if isinstance(value, ray.ObjectRef) else value for value in call)
    return task(*args)


def put_array(array: Rows, parts: int) -> list[Source]:
    """Cut an array (n, d) into at most `parts` blocks in the object store."""
    return [Blocks(low, (_put(array[low:high]),)) for low, high in rows.bounds(len(array), parts)]


def _put(part: Rows) -> Any:
    # A tensor's slice would be stored with the whole tensor behind it.
    return ray.put(part.clone() if isinstance(part, torch.Tensor) else part)


def put_dataset(dataset: Any, column: str, parts: int) -> list[Source]:
    """Group the blocks of a Ray Dataset, in order, into at most `parts` runs of nearly equal length."""
    entries = [entry for bundle in dataset.iter_internal_ref_bundles() for entry in bundle.blocks if entry.metadata.num_rows]
    counts, references = [entry.metadata.num_rows for entry in entries], [entry.ref for entry in entries]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    cuts = np.unique(np.searchsorted(starts[:-1], [low for low, _ in rows.bounds(int(starts[-1]), parts)]))
    ends = [*cuts[1:], len(references)]
    return [
        Blocks(int(starts[low]), tuple(references[low:high]), column) for low, high in zip(cuts, ends, strict=True) if low < high
    ]
