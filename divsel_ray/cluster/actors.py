"""The Ray actors of k-means: shard actors hold partitions of the rows, a coordinator runs the loops over them.

Centroids are sent to the shard actors; changes in the clusters' sums and counts, and the farthest rows, come back. Rows never
pass through the driver or the coordinator. On a single machine one actor plays both roles, with one thread per partition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import ray
import torch

from divsel_ray.cluster import rows, shards
from divsel_ray.cluster.kernels import Rows
from divsel_ray.cluster.rows import Held, Partition, Streamed
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import LocalShards, Shards
from divsel_ray.config import Workers

P = ParamSpec("P")
T = TypeVar("T")
Fields = TypeVar("Fields", bound=tuple[Any, ...])

CALL_SECONDS = 3600.0
"""How long one pass over a partition, or the restart of a lost actor, may take."""
_ANY = Workers()


@dataclass(frozen=True)
class Blocks:
    """Consecutive rows in Ray's object store: arrays, or Arrow tables with a column of vectors.

    Attributes:
        first: global number of the first row.
        references: the blocks, in order.
        column: name of the vectors' column in tables.
    """

    first: int
    references: tuple[Any, ...]
    column: str = "embedding"


Source = Partition | Blocks


@dataclass(frozen=True)
class Holding:
    """How shard actors hold their rows.

    Attributes:
        streamed: read the files on every pass instead of keeping the rows in memory.
        normalised: scale rows to unit length.
        workers: number and resources of the actors.
    """

    streamed: bool = False
    normalised: bool = False
    workers: Workers = _ANY


class ShardActor:
    """Holds the rows of some partitions; reads them on the first call after each start.

    Args:
        sources: the partitions.
        holding: how their rows are held.
        threads: partitions processed at the same time, each on as many CPUs as a worker has.
    """

    def __init__(self, sources: list[Source], holding: Holding, threads: int = 1) -> None:
        self._sources, self._holding, self._threads = sources, holding, threads
        self._shards: LocalShards | None = None
        self._cpus = max(1, int(holding.workers.cpus))
        torch.set_num_threads(self._cpus)

    def ready(self) -> bool:
        """Return once the actor has been scheduled."""
        return True

    def held(self) -> LocalShards:
        """The partitions with their rows."""
        if self._shards is None:
            with ThreadPoolExecutor(self._threads) as pool:
                opened = list(pool.map(self._open, self._sources))
            self._shards = LocalShards(opened, self._threads, self._cpus)
        return self._shards

    def _open(self, source: Source) -> Shard:
        return Shard(open_source(source, self._holding), source.first)

    def ask(self, question: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Return one answer per partition."""
        return self.held().map(question, *args, **kwargs)

    def total(self, question: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the sum of all partitions' answers."""
        return self.held().total(question, *args, **kwargs)

    def run(self, task: Any, *args: Any) -> Any:
        """Call a function that does not use the partitions."""
        return task(*args)


def open_source(source: Source, holding: Holding) -> Held | Streamed:
    """Open the rows of a partition, in memory or streamed."""
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
    # The import takes half a second in every actor.
    from ray.data.block import BlockAccessor

    values = BlockAccessor.for_block(block).to_numpy(column)
    matrix = np.ascontiguousarray(np.stack(values) if values.dtype == object else values)
    return matrix if matrix.dtype in (np.float16, np.float32) else matrix.astype(np.float32)


class RayShards:
    """Partitions held by shard actors, in the order of the rows.

    Attributes:
        actors: the shard actors.
        coordinator: the actor that runs loops over the partitions, or None.
    """

    def __init__(self, actors: Sequence[Any], coordinator: Any = None) -> None:
        self.actors, self.coordinator = list(actors), coordinator
        self._stored: list[tuple[Any, Any]] = []

    def map(self, question: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Ask all partitions at the same time."""
        return [answer for answers in self._ask("ask", question, args, kwargs) for answer in answers]

    def total(self, question: Callable[Concatenate[Shard, P], Fields], *args: P.args, **kwargs: P.kwargs) -> Fields:
        """The sum of all answers, added up first by each actor and then here."""
        return shards.add(self._ask("total", question, args, kwargs))

    def _ask(self, method: str, question: Any, args: Any, kwargs: Any) -> list[Any]:
        stored = [self._store(value) if isinstance(value, np.ndarray) else value for value in args]
        asked = [getattr(actor, method).remote(question, *stored, **kwargs) for actor in self.actors]
        answers: list[Any] = ray.get(asked, timeout=CALL_SECONDS)
        return answers

    def _store(self, array: Any) -> Any:
        """Put the array into the object store; an array that the previous call sent is reused."""
        for known, reference in self._stored:
            if known is array:
                return reference
        reference = ray.put(array)
        self._stored = [*self._stored[-1:], (array, reference)]
        return reference


class Looping(ABC):
    """Runs a loop over partitions and reports its progress meanwhile."""

    _state: tuple[int, int, str] | None = None

    @abstractmethod
    def partitions(self) -> Shards:
        """The partitions that the loop runs over."""

    def loop(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(shards, *args, report)`."""
        self._state = None
        return function(self.partitions(), *args, self._report)

    def state(self) -> tuple[int, int, str] | None:
        """Work done, total work and its unit; None before the first report."""
        return self._state

    def _report(self, done: int, total: int, unit: str) -> None:
        self._state = (done, total, unit)


class Coordinator(Looping):
    """Runs loops over shard actors, on any number of nodes."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = RayShards(actors)
        torch.set_num_threads(1)

    def partitions(self) -> Shards:
        """The shard actors."""
        return self._actors


class WholeActor(Looping, ShardActor):
    """Holds all partitions and runs the loops over them, so that nothing has to be sent on a single machine."""

    def partitions(self) -> Shards:
        """The actor's own partitions."""
        return self.held()
