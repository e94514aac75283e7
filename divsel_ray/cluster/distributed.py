"""k-means on Ray: shard actors keep the rows, a coordinator actor runs the loop over them, the driver looks on.

A killed actor is started again and reads its rows again, and the call it was answering is repeated; answers
depend on rows and arguments only, so the result stays the same.
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
"""Assignments with a size cap; the best is kept."""
STATE_BYTES = 64
"""What a shard remembers of a row besides the row."""
ROWS_PER_SHARD = 1 << 14
"""With fewer, a pass takes less time than asking a shard for it."""


def default_shards(count: int, workers: Workers, cluster: Cluster) -> int:
    """Partitions of so many rows where their number is not given: one for each actor that the cluster has room for."""
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
    """Shard actors for these partitions, as many as the cluster holds, and a coordinator, which takes no CPU.

    On a single machine without GPUs they are threads of one actor, which is its own coordinator. The actors end with the
    block. Without `coordinated` there is no coordinator, and nothing can be fitted. `folder` is where they write, for messages.

    Raises:
        JobError: the cluster gave them no place, Ray lost them for good, or a disk is full.
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
    # Beside the loop, a thread for each task it is given, and one that says where the loop is.
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
    """Cluster rows that `check_rows` found finite.

    Args:
        held: the partitions.
        settings: see `lloyd.Settings`.
        geometry: of all rows.
        progress: told of centroids drawn, then of iterations.
        journal: see `lloyd.fit`; its file must be on storage that every node sees.

    Raises:
        InputError: there are fewer rows than clusters.
        JobError: the coordinator was lost for good.
    """
    if settings.k > geometry.rows:
        raise too_many_clusters(settings.k, geometry.rows)
    return coordinate(held, run_fit, (settings, geometry, journal), progress)


def run_fit(held: Shards, settings: Settings, geometry: Geometry, journal: Journal | None, report: lloyd.Report) -> Fit:
    """`lloyd.fit` and, with a size cap, `balance.balanced_fit`, as the coordinator calls it."""
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
        loop: a function of this package, called with the partitions, `args` and a function to report to.
        args: plain values and k-sized arrays.
        progress: told of what the loop reports.
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
    """What is known of all rows, once they are found to be usable.

    Args:
        held: the partitions.
        dimension: features of a row.
        name_row: how messages call a row, given its global number.
        directions: whether every row must have one.

    Raises:
        InputError: a row is not finite, or its norm exceeds 1e18; with `directions`, or a row is zero.
    """
    findings = shards.inspect(held, dimension)
    if findings.bad is not None:
        value = "a NaN, infinite or huge value; expected a finite vector, mend or remove that row"
        raise InputError(f"{name_row(findings.bad)}: {value}")
    if directions and findings.zero is not None:
        raise InputError(
            f"{name_row(findings.zero)}: a vector of zeros has no direction; remove that row or use metric euclidean"
        )
    return findings.geometry


def too_many_clusters(k: int, count: int) -> InputError:
    """What is said when there are more clusters than rows."""
    return InputError(f"k {k} exceeds the pool's {count} rows; lower cluster.k")


@dataclass(frozen=True)
class Plan:
    """Whether rows are kept or streamed, and why in one line."""

    streamed: bool
    reason: str


def plan_memory(files: rows.Files, cluster: Cluster, mode: Mode) -> Plan:
    """Keep the rows of these files in memory where the cluster has room for them."""
    needed = files.rows * (files.dimension * (2 if files.half else 4) + STATE_BYTES) / 2**30
    available = MEMORY_SHARE * cluster.memory_gib
    streamed = needed > available if mode == "auto" else mode == "streaming"
    fits = f"{files.rows:,} vectors take {needed:.2g} GiB, {available:.2g} GiB are free for them"
    manner = "streamed from Parquet on every pass" if streamed else "kept in memory"
    return Plan(streamed, f"{fits}: {manner}" if mode == "auto" else f"{fits}: {manner}, as configured")


def run_all(held: Shards, calls: Sequence[tuple[Any, ...]], report: lloyd.Report, unit: str) -> list[Any]:
    """Have those who hold the partitions do independent tasks.

    Args:
        held: the partitions.
        calls: a function of this package and its arguments, for each task; references stand for what they refer to.
        report: told of tasks done.
        unit: what a task makes, in the plural.

    Returns:
        Their answers, in the order of the calls.

    Raises:
        JobError: none ended for an hour.
    """
    if isinstance(held, LocalShards):
        return held.each(_call, calls, lambda done: report(done, len(calls), unit))
    assert isinstance(held, RayShards)
    asked = [held.actors[at % len(held.actors)].run.remote(*call) for at, call in enumerate(calls)]
    pending = asked
    while pending:
        done, pending = ray.wait(pending, timeout=CALL_SECONDS)
        if not done:
            raise JobError(f"k-means: no {unit} done in {CALL_SECONDS:g} s; see whether the cluster lost its nodes")
        ray.get(done)
        report(len(asked) - len(pending), len(asked), unit)
    answers: list[Any] = ray.get(asked)
    return answers


def _call(call: tuple[Any, ...]) -> Any:
    task, *args = (ray.get(value) if isinstance(value, ray.ObjectRef) else value for value in call)
    return task(*args)


def put_array(array: Rows, parts: int) -> list[Source]:
    """An array (n, d) cut into at most `parts` blocks in the object store."""
    return [Blocks(low, (_put(array[low:high]),)) for low, high in rows.bounds(len(array), parts)]


def _put(part: Rows) -> Any:
    # A tensor's slice would be stored with the whole tensor behind it.
    return ray.put(part.clone() if isinstance(part, torch.Tensor) else part)


def put_dataset(dataset: Any, column: str, parts: int) -> list[Source]:
    """The blocks of a Ray Dataset, in its order, in at most `parts` runs of nearly equal length."""
    entries = [entry for bundle in dataset.iter_internal_ref_bundles() for entry in bundle.blocks if entry.metadata.num_rows]
    counts, references = [entry.metadata.num_rows for entry in entries], [entry.ref for entry in entries]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    cuts = np.unique(np.searchsorted(starts[:-1], [low for low, _ in rows.bounds(int(starts[-1]), parts)]))
    ends = [*cuts[1:], len(references)]
    return [
        Blocks(int(starts[low]), tuple(references[low:high]), column) for low, high in zip(cuts, ends, strict=True) if low < high
    ]
