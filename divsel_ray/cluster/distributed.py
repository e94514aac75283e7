"""k-means on Ray: shard actors keep the rows, a coordinator actor runs Lloyd's loop over them, the driver looks on.

Centroids go out, sums, counts and farthest rows come back; rows never pass through the driver or the coordinator. A
killed actor is started again and reads its rows again, and the call it was answering is repeated; answers depend on rows
and arguments only, so the result stays the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from divsel_ray.cluster import kernels, lloyd, rows
from divsel_ray.cluster.kernels import Float32, Rows
from divsel_ray.cluster.lloyd import Fit, Settings, Shards
from divsel_ray.cluster.shard import Shard
from divsel_ray.config import Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import atomic_path

P = ParamSpec("P")
T = TypeVar("T")

WORKERS = Workers(count=None, cpus=1, gpus=0)
START_SECONDS = 600.0
"""How long actors may take to get a place in the cluster."""
CALL_SECONDS = 3600.0
"""How long one pass over a partition, or the restart of a lost actor, may take."""
POLL_SECONDS = 0.2
_RESTARTED = {"max_restarts": -1, "max_task_retries": -1}


@dataclass(frozen=True)
class Block:
    """Consecutive rows in Ray's object store, the first of which has global number `first`."""

    first: int
    rows: Any


Source = rows.Partition | Block


class ShardActor:
    """Keeps the rows of some partitions; reads them at the first question after each start."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self._shards: list[Shard] | None = None

    def ready(self) -> bool:
        """Answers once the actor has a place."""
        return True

    def ask(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """One answer per partition."""
        if self._shards is None:
            self._shards = [Shard(_load(source), source.first) for source in self._sources]
        return [getattr(shard, method)(*args, **kwargs) for shard in self._shards]

    def write(self, source: str, target: str, centroids: Float32) -> None:
        """See `write_clusters`."""
        write_clusters(source, target, centroids)


def _load(source: Source) -> Rows:
    return ray.get(source.rows) if isinstance(source, Block) else rows.read(source)


def write_clusters(source: str, target: str, centroids: Float32) -> None:
    """Assign the rows of one embedding file and write `row_id, cluster, distance`; a file that exists is left alone.

    Args:
        source: Parquet file with `row_id` and `embedding`.
        target: Parquet file to write; `distance` is the Euclidean distance to the row's own centroid.
        centroids: (k, d).
    """
    if Path(target).exists():
        return
    table = pq.read_table(source, columns=["row_id", "embedding"], partitioning=None)
    labels, squared = kernels.assign(rows.to_matrix(table["embedding"]), centroids)
    columns = {"row_id": table["row_id"].cast(pa.string()), "cluster": pa.array(labels), "distance": pa.array(np.sqrt(squared))}
    with atomic_path(target) as temporary:
        pq.write_table(pa.table(columns), temporary)


class RayShards:
    """The partitions as shard actors hold them, in the order of the rows."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)

    def map(self, method: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Ask all partitions at once."""
        stored = [ray.put(value) if isinstance(value, np.ndarray) else value for value in args]
        asked = [actor.ask.remote(method.__name__, *stored, **kwargs) for actor in self.actors]
        return [answer for answers in ray.get(asked, timeout=CALL_SECONDS) for answer in answers]


class Coordinator:
    """Runs Lloyd's loop over the shard actors, and says meanwhile where it is."""

    def __init__(self, actors: list[Any]) -> None:
        self._shards = RayShards(actors)
        self._state: tuple[int, int, str] | None = None

    def fit(self, settings: Settings, variance: float) -> Fit:
        """See `lloyd.fit`."""
        return lloyd.fit(self._shards, settings, variance, self._report)

    def state(self) -> tuple[int, int, str] | None:
        """Work done, work in all, and its unit; None before anything is done."""
        return self._state

    def _report(self, done: int, total: int, unit: str) -> None:
        self._state = (done, total, unit)


@contextlib.contextmanager
def start_shards(sources: Sequence[Source], cluster: Cluster) -> Iterator[RayShards]:
    """Shard actors for these partitions, as many as the cluster holds; they end with the block.

    Raises:
        JobError: the cluster gave them no place, or Ray lost them for good.
    """
    count = cluster.count(WORKERS, len(sources))
    actor_class = ray.remote(num_cpus=WORKERS.cpus, **_RESTARTED)(ShardActor)
    actors = [actor_class.remote(list(sources[low:high])) for low, high in rows.bounds(len(sources), count)]
    try:
        _await_places(actors)
        yield RayShards(actors)
    except ray.exceptions.RayError as error:
        raise JobError(f"k-means: {_last_line(error)}") from error
    finally:
        for actor in actors:
            ray.kill(actor)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _await_places(actors: Sequence[Any]) -> None:
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=START_SECONDS)
    except ray.exceptions.GetTimeoutError:
        message = f"k-means: {len(actors)} actors with {WORKERS.cpus:g} CPU each found no place in {START_SECONDS:g} s"
        raise JobError(f"{message}; free CPUs of the cluster or lower cluster.n_shards") from None


def fit(shards: RayShards, settings: Settings, name_row: Callable[[int], str], progress: Progress) -> Fit:
    """Check the rows, then cluster them.

    Args:
        shards: the partitions.
        settings: see `lloyd.Settings`.
        name_row: how messages call a row, given its global number.
        progress: told of centroids drawn, then of iterations.

    Raises:
        InputError: there are fewer rows than clusters, or a row is not finite.
        JobError: the coordinator was lost for good.
    """
    count, variance = check_rows(shards, name_row)
    if settings.k > count:
        raise too_many_clusters(settings.k, count)
    coordinator = ray.remote(num_cpus=0, max_concurrency=2, **_RESTARTED)(Coordinator).remote(shards.actors)
    try:
        result = coordinator.fit.remote(settings, variance)
        _watch(coordinator, result, progress)
        fitted: Fit = ray.get(result)
        return fitted
    finally:
        ray.kill(coordinator)


def check_rows(shards: Shards, name_row: Callable[[int], str]) -> tuple[int, float]:
    """Number of rows and mean variance of the features.

    Raises:
        InputError: a row is not finite, or its norm exceeds 1e18.
    """
    count, bad, variance = lloyd.combine_inspections(shards.map(Shard.inspect))
    if bad is not None:
        raise InputError(f"{name_row(bad)}: a NaN, infinite or huge value; expected a finite vector, mend or remove that row")
    return count, variance


def too_many_clusters(k: int, count: int) -> InputError:
    """What is said when there are more clusters than rows."""
    return InputError(f"k {k} exceeds the pool's {count} rows; lower cluster.k")


def _watch(coordinator: Any, result: Any, progress: Progress) -> None:
    finished: list[Any] = []
    while not finished:
        finished, _ = ray.wait([result], timeout=POLL_SECONDS)
        state = ray.get(coordinator.state.remote(), timeout=CALL_SECONDS)
        if state is not None:
            progress.advance(*state)


def write_files(shards: RayShards, pairs: Sequence[tuple[str, str]], centroids: Float32, progress: Progress) -> None:
    """Have the actors write one cluster file per embedding file.

    Args:
        shards: their actors do the work.
        pairs: embedding file and cluster file.
        centroids: (k, d).
        progress: told of files written.
    """
    stored = ray.put(centroids)
    actors = shards.actors
    pending = [actors[i % len(actors)].write.remote(*pair, stored) for i, pair in enumerate(pairs)]
    while pending:
        done, pending = ray.wait(pending, timeout=CALL_SECONDS)
        if not done:
            raise JobError(f"k-means: no cluster file written in {CALL_SECONDS:g} s; see whether the cluster lost its nodes")
        ray.get(done)
        progress.advance(len(pairs) - len(pending), len(pairs), "files")


def put_blocks(array: Rows, parts: int) -> list[Source]:
    """An array (n, d) cut into at most `parts` blocks in the object store."""
    return [Block(low, ray.put(np.ascontiguousarray(array[low:high]))) for low, high in rows.bounds(len(array), parts)]
