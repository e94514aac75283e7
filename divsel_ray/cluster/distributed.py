"""k-means on Ray: shard actors keep the rows, a coordinator actor runs the loop over them, the driver looks on.

Centroids go out; what clusters gain and lose, and the farthest rows, come back. Rows never pass through the driver or the
coordinator. A killed actor is started again and reads its rows again, and the call it was answering is repeated; answers
depend on rows and arguments only, so the result stays the same.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import ray
import torch

from divsel_ray.cluster import balance, lloyd, rows, shards
from divsel_ray.cluster.journal import Journal
from divsel_ray.cluster.kernels import Rows
from divsel_ray.cluster.lloyd import Fit, Settings
from divsel_ray.cluster.rows import Held, Partition, Streamed
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import Geometry, Shards
from divsel_ray.config import Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster

P = ParamSpec("P")
T = TypeVar("T")
Fields = TypeVar("Fields", bound=tuple[Any, ...])
Mode = Literal["auto", "memory", "streaming"]

START_SECONDS = 600.0
"""How long actors may take to get a place in the cluster."""
CALL_SECONDS = 3600.0
"""How long one pass over a partition, or the restart of a lost actor, may take."""
POLL_SECONDS = 0.2
MEMORY_SHARE = 0.6
"""Share of the cluster's memory that rows may fill before they are streamed."""
BALANCING_ITERATIONS = 5
"""Assignments with a size cap; the best is kept."""
STATE_BYTES = 64
"""What a shard remembers of a row besides the row."""
_ANY = Workers()
_RESTARTED = {"max_restarts": -1, "max_task_retries": -1}


@dataclass(frozen=True)
class Blocks:
    """Consecutive rows in Ray's object store: arrays, or Arrow tables with a column of vectors.

    Attributes:
        first: global number of the first row.
        references: the blocks, in order.
        column: of the vectors, in tables.
    """

    first: int
    references: tuple[Any, ...]
    column: str = "embedding"


Source = Partition | Blocks


@dataclass(frozen=True)
class Holding:
    """How shard actors hold their rows.

    Attributes:
        streamed: read files anew on every pass.
        normalised: scale rows to unit length.
        workers: how many actors, with which resources.
    """

    streamed: bool = False
    normalised: bool = False
    workers: Workers = _ANY


class ShardActor:
    """Holds the rows of some partitions; reads them at the first question after each start."""

    def __init__(self, sources: list[Source], holding: Holding) -> None:
        self._sources, self._holding = sources, holding
        self._shards: list[Shard] | None = None
        torch.set_num_threads(max(1, int(holding.workers.cpus)))

    def ready(self) -> bool:
        """Answers once the actor has a place."""
        return True

    def ask(self, question: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """One answer per partition."""
        if self._shards is None:
            self._shards = [Shard(open_source(source, self._holding), source.first) for source in self._sources]
        return [question(shard, *args, **kwargs) for shard in self._shards]

    def total(self, question: Any, *args: Any, **kwargs: Any) -> Any:
        """The sum of the answers of all partitions."""
        return shards.add(self.ask(question, *args, **kwargs))

    def run(self, task: Any, *args: Any) -> Any:
        """Call a function that needs none of the partitions."""
        return task(*args)


def open_source(source: Source, holding: Holding) -> Held | Streamed:
    """The rows of a partition, held or streamed."""
    device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
    if isinstance(source, Partition) and holding.streamed:
        return Streamed(source, device, normalised=holding.normalised)
    matrix = rows.read(source) if isinstance(source, Partition) else _fetch(source)
    return Held(rows.normalise(matrix) if holding.normalised else matrix, device)


def _fetch(blocks: Blocks) -> Rows:
    parts = [ray.get(reference) for reference in blocks.references]
    arrays = [part if isinstance(part, (np.ndarray, torch.Tensor)) else _vectors(part, blocks.column) for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _vectors(block: Any, column: str) -> Rows:
    """The vectors of a Ray Data block, as float16 or float32."""
    if isinstance(block, pa.Table) and pa.types.is_fixed_size_list(block[column].type):
        return rows.to_matrix(block[column])
    # Half a second to import, in every actor.
    from ray.data.block import BlockAccessor

    values = BlockAccessor.for_block(block).to_numpy(column)
    matrix = np.ascontiguousarray(np.stack(values) if values.dtype == object else values)
    return matrix if matrix.dtype in (np.float16, np.float32) else matrix.astype(np.float32)


class RayShards:
    """The partitions as shard actors hold them, in the order of the rows.

    Attributes:
        actors: they hold the partitions.
        coordinator: the actor that runs loops over them, or None.
    """

    def __init__(self, actors: Sequence[Any], coordinator: Any = None) -> None:
        self.actors, self.coordinator = list(actors), coordinator
        self._stored: list[tuple[Any, Any]] = []

    def map(self, question: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Ask all partitions at once."""
        return [answer for answers in self._ask("ask", question, args, kwargs) for answer in answers]

    def total(self, question: Callable[Concatenate[Shard, P], Fields], *args: P.args, **kwargs: P.kwargs) -> Fields:
        """The same, added up first by each actor and then here."""
        return shards.add(self._ask("total", question, args, kwargs))

    def _ask(self, method: str, question: Any, args: Any, kwargs: Any) -> list[Any]:
        stored = [self._store(value) if isinstance(value, np.ndarray) else value for value in args]
        asked = [getattr(actor, method).remote(question, *stored, **kwargs) for actor in self.actors]
        answers: list[Any] = ray.get(asked, timeout=CALL_SECONDS)
        return answers

    def _store(self, array: Any) -> Any:
        """The array in the object store; one that was asked with in the last question is there already."""
        for known, reference in self._stored:
            if known is array:
                return reference
        reference = ray.put(array)
        self._stored = [*self._stored[-1:], (array, reference)]
        return reference


class Coordinator:
    """Runs a loop over the shard actors, and says meanwhile where it is."""

    def __init__(self, actors: list[Any]) -> None:
        self._shards = RayShards(actors)
        self._state: tuple[int, int, str] | None = None
        torch.set_num_threads(1)

    def run(self, loop: str, *args: Any) -> Any:
        """Call `loop` (module:function) as `loop(shards, *args, report)`."""
        self._state = None
        module, _, name = loop.partition(":")
        return getattr(importlib.import_module(module), name)(self._shards, *args, self._report)

    def state(self) -> tuple[int, int, str] | None:
        """Work done, work in all, and its unit; None before anything is done."""
        return self._state

    def _report(self, done: int, total: int, unit: str) -> None:
        self._state = (done, total, unit)


@contextlib.contextmanager
def start_shards(
    sources: Sequence[Source], cluster: Cluster, holding: Holding | None = None, *, coordinated: bool = True
) -> Iterator[RayShards]:
    """Shard actors for these partitions, as many as the cluster holds, and a coordinator, which takes no CPU.

    They end with the block. Without `coordinated` there is no coordinator, and nothing can be fitted.

    Raises:
        JobError: the cluster gave them no place, or Ray lost them for good.
    """
    holding = holding or Holding()
    workers = holding.workers
    count = cluster.count(workers, len(sources))
    options = {"num_cpus": workers.cpus, "num_gpus": cluster.gpus_per_worker(workers), **_RESTARTED}
    actor_class = ray.remote(**options)(ShardActor)
    actors = [actor_class.remote(list(sources[low:high]), holding) for low, high in rows.bounds(len(sources), count)]
    coordinators = [ray.remote(num_cpus=0, max_concurrency=2, **_RESTARTED)(Coordinator).remote(actors)] if coordinated else []
    try:
        _await_places(actors, workers)
        yield RayShards(actors, *coordinators)
    except ray.exceptions.RayError as error:
        raise JobError(f"k-means: {_last_line(error)}") from error
    finally:
        for actor in (*actors, *coordinators):
            ray.kill(actor)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _await_places(actors: Sequence[Any], workers: Workers) -> None:
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=START_SECONDS)
    except ray.exceptions.GetTimeoutError:
        message = f"k-means: {len(actors)} actors with {workers.cpus:g} CPU each found no place in {START_SECONDS:g} s"
        raise JobError(f"{message}; free CPUs of the cluster or lower cluster.n_shards") from None


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
    result: Fit = coordinate(held, "divsel_ray.cluster.distributed:run_fit", (settings, geometry, journal), progress)
    return result


def run_fit(held: Shards, settings: Settings, geometry: Geometry, journal: Journal | None, report: lloyd.Report) -> Fit:
    """`lloyd.fit` and, with a size cap, `balance.balanced_fit`, as the coordinator calls it."""
    found = lloyd.fit(held, settings, geometry, report, journal)
    if settings.max_size is None:
        return found
    size, most, spherical = settings.max_size, BALANCING_ITERATIONS, settings.spherical
    best = balance.balanced_fit(held, found.centroids, size, most, geometry.grid, report, spherical=spherical).best
    return replace(found, centroids=best.centroids, inertia=best.inertia, sizes=best.counts, thresholds=best.thresholds)


def coordinate(held: RayShards, loop: str, args: tuple[Any, ...], progress: Progress) -> Any:
    """Have the coordinator run a loop over the partitions.

    Args:
        held: the partitions.
        loop: `module:function`, called with the partitions, `args` and a function to report to.
        args: plain values and k-sized arrays.
        progress: told of what the loop reports.
    """
    result = held.coordinator.run.remote(loop, *args)
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


def run_all(held: RayShards, calls: Sequence[tuple[Any, ...]], report: lloyd.Report, unit: str) -> list[Any]:
    """Have the actors do independent tasks.

    Args:
        held: their actors do the work.
        calls: a function of this package and its arguments, for each task.
        report: told of tasks done.
        unit: what a task makes, in the plural.

    Returns:
        Their answers, in the order of the calls.

    Raises:
        JobError: none ended for an hour.
    """
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
