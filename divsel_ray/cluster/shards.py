"""All rows, as partitions on which functions are called; and properties of all rows together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch

from divsel_ray.cluster.exact import Grid, exact_total
from divsel_ray.cluster.shard import Inspection, Shard

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
Fields = TypeVar("Fields", bound=tuple[Any, ...])


class Shards(Protocol):
    """The partitions of the rows."""

    def map(self, question: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call a method of `Shard`, or a function whose first argument is one, on every partition; results in row order."""

    def total(self, question: Callable[Concatenate[Shard, P], Fields], *args: P.args, **kwargs: P.kwargs) -> Fields:
        """Call a function that returns a named tuple of exact numbers on every partition, and add these up field by field."""


class LocalShards:
    """Partitions in this process.

    Args:
        shards: the partitions, in the order of the rows.
        threads: number of partitions processed at the same time; array arithmetic releases the interpreter lock.
        cpus: CPUs per thread.
    """

    def __init__(self, shards: list[Shard], threads: int = 1, cpus: int = 1) -> None:
        self._shards = shards
        # The number of CPUs that arithmetic may use is set per thread.
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cpus,)) if threads > 1 else None

    def map(self, question: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """See `Shards.map`."""
        return self.each(lambda shard: question(shard, *args, **kwargs), self._shards)

    def total(self, question: Callable[Concatenate[Shard, P], Fields], *args: P.args, **kwargs: P.kwargs) -> Fields:
        """See `Shards.total`."""
        return add(self.map(question, *args, **kwargs))

    def each(self, function: Callable[[S], T], values: Iterable[S], told: Callable[[int], None] = lambda _: None) -> list[T]:
        """Call a function with each value, on the same threads; `told` is called with the number of results so far."""
        answers: list[T] = []
        for answer in self._pool.map(function, values) if self._pool else map(function, values):
            answers.append(answer)
            told(len(answers))
        return answers


def add(answers: list[Fields]) -> Fields:
    """Add up several named tuples, field by field."""
    return reduce(lambda left, right: type(left)(*(a + b for a, b in zip(left, right, strict=True))), answers)


@dataclass(frozen=True)
class Geometry:
    """Properties of all rows together.

    Attributes:
        rows: number of rows.
        dimension: number of features.
        largest: largest absolute value.
        squares: sum of all squared values.
        grid: grid on which sums of rows are exact.
        digest: hash of all rows and their order.
    """

    rows: int
    dimension: int
    largest: float
    squares: float
    grid: Grid
    digest: int


@dataclass(frozen=True)
class Findings:
    """Global numbers of the first unusable row and of the first row of zeros, if any; and the geometry of all rows."""

    bad: int | None
    zero: int | None
    geometry: Geometry


def inspect(shards: Shards, dimension: int) -> Findings:
    """Inspect all rows."""
    parts = shards.map(Shard.inspect)
    rows = sum(part.rows for part in parts)
    largest = max(part.largest for part in parts)
    squares = exact_total(np.sum([part.squared_norms for part in parts], axis=0))
    geometry = Geometry(rows, dimension, largest, squares, Grid.of(rows, largest), sum(part.digest for part in parts) % 2**64)
    return Findings(_first(parts, "bad"), _first(parts, "zero"), geometry)


def _first(parts: list[Inspection], name: str) -> int | None:
    return min((getattr(part, name) for part in parts if getattr(part, name) is not None), default=None)
