"""All rows, as partitions that answer questions; and what holds for all rows together."""

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
        """Ask every partition: a method of `Shard`, or a function whose first argument is one; answers in row order."""

    def total(self, question: Callable[Concatenate[Shard, P], Fields], *args: P.args, **kwargs: P.kwargs) -> Fields:
        """Ask every partition for a named tuple of exact numbers, and add these up field by field."""


class LocalShards:
    """Partitions in this process.

    Args:
        shards: the partitions, in the order of the rows.
        threads: how many partitions are asked at the same time; arithmetic on arrays leaves the interpreter to the others.
        cpus: of each thread.
    """

    def __init__(self, shards: list[Shard], threads: int = 1, cpus: int = 1) -> None:
        self._shards = shards
        # How many CPUs arithmetic may use is a setting of each thread.
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cpus,)) if threads > 1 else None

    def map(self, question: Callable[Concatenate[Shard, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Ask every partition."""
        return self.each(lambda shard: question(shard, *args, **kwargs), self._shards)

    def total(self, question: Callable[Concatenate[Shard, P], Fields], *args: P.args, **kwargs: P.kwargs) -> Fields:
        """The same, added up."""
        return add(self.map(question, *args, **kwargs))

    def each(self, function: Callable[[S], T], values: Iterable[S], told: Callable[[int], None] = lambda _: None) -> list[T]:
        """Call a function with each value, on the same threads; `told` is called with the number of answers so far."""
        answers: list[T] = []
        for answer in self._pool.map(function, values) if self._pool else map(function, values):
            answers.append(answer)
            told(len(answers))
        return answers


def add(answers: list[Fields]) -> Fields:
    """The sum of several named tuples, field by field."""
    return reduce(lambda left, right: type(left)(*(a + b for a, b in zip(left, right, strict=True))), answers)


@dataclass(frozen=True)
class Geometry:
    """What is known of all rows together.

    Attributes:
        rows: how many there are.
        dimension: features of each.
        largest: largest absolute value.
        squares: sum of all squared values.
        grid: what sums of rows are exact on.
        digest: of all rows and their order.
    """

    rows: int
    dimension: int
    largest: float
    squares: float
    grid: Grid
    digest: int


@dataclass(frozen=True)
class Findings:
    """Global numbers of the first row that cannot be used, and of the first row of zeros, if any; what holds of all."""

    bad: int | None
    zero: int | None
    geometry: Geometry


def inspect(shards: Shards, dimension: int) -> Findings:
    """Look at all rows."""
    parts = shards.map(Shard.inspect)
    rows = sum(part.rows for part in parts)
    largest = max(part.largest for part in parts)
    squares = exact_total(np.sum([part.squared_norms for part in parts], axis=0))
    geometry = Geometry(rows, dimension, largest, squares, Grid.of(rows, largest), sum(part.digest for part in parts) % 2**64)
    return Findings(_first(parts, "bad"), _first(parts, "zero"), geometry)


def _first(parts: list[Inspection], name: str) -> int | None:
    return min((getattr(part, name) for part in parts if getattr(part, name) is not None), default=None)
