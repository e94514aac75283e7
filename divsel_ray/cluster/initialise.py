"""The initial centroids: random rows, k-means++ (Arthur and Vassilvitskii 2007), k-means|| (Bahmani et al. 2012).

Every draw follows from hashes of (seed, start, step, row number) and from distances in integers, which are the same
numbers in any order of summation. The draws therefore do not depend on how the rows are partitioned.

k-means++ draws one centroid after the other, each with probability proportional to the squared distance D to the nearest
one so far. Here candidates are drawn in batches, by the distances before the batch, and each is accepted with probability
D now / D before the batch, which yields the sequential distribution (rejection sampling): one matrix product per batch,
and two calls to the partitions for about every 64 centroids.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch

from divsel_ray.cluster.exact import Float32, Float64, Int64, Words, mix
from divsel_ray.cluster.kernels import Rows, slices, tensor_of
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import Geometry, LocalShards, Shards

Told = Callable[[int], None]
"""Called with the number of centroids drawn so far."""
PARALLEL_ROUNDS = 5
"""Rounds of k-means||; Bahmani et al. 2012, section 5, found no gain beyond."""
LARGEST_BATCH = 64
_MASK = (1 << 64) - 1
_PRODUCT_ELEMENTS = 1 << 20


class Purpose(IntEnum):
    """The purpose of a draw; each purpose gives the same row different random numbers."""

    RANDOM_ROWS = 0
    CANDIDATES = 1
    ACCEPTANCE = 2
    PARALLEL = 3
    SAMPLE = 4
    STABILITY = 5


class Draw(NamedTuple):
    """The values from which a draw's random numbers are hashed."""

    seed: int
    start: int
    purpose: Purpose
    step: int


class Sample(NamedTuple):
    """Drawn rows: keys (m,), global row numbers (m,), rows (m, d) float32."""

    keys: Float64
    indices: Int64
    rows: Float32


def hashes(draw: Draw, indices: Int64) -> Words:
    """64 random bits for each global row number, by SplitMix64 (see `mix`)."""
    key = np.zeros(1, np.uint64)
    for part in draw:
        key = mix(key ^ np.uint64(part & _MASK))
    return mix(mix(indices.astype(np.uint64)) ^ key)


def uniforms(draw: Draw, indices: Int64) -> Float64:
    """Numbers above 0 and at most 1, one per global row number."""
    return ((hashes(draw, indices) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


class IntegerDistances:
    """Squared distances of rows to their nearest centroid drawn so far, as exact integers.

    Rows are rounded to integers of so few bits that their float64 matrix product is exact.

    Args:
        blocks: iterates over all rows, in order, each time it is called.
        count: number of rows.
        geometry: geometry of all rows.
        multiplicity: (n,) weight of each row; None for 1.

    Attributes:
        nearest: (n,) the squared distances, infinite before the first centroid.
    """

    def __init__(self, blocks: Callable[[], Any], count: int, geometry: Geometry, multiplicity: Int64 | None = None) -> None:
        self._blocks = blocks
        self._multiplicity = multiplicity
        self._exponent, self._shift = _precision(geometry)
        self.nearest = np.full(count, np.inf)
        self._cumulative: Int64 | None = None

    def add(self, centroids: Float32) -> None:
        """Add newly drawn centroids (m, d)."""
        if not len(centroids):
            return
        columns = _integers(centroids, self._exponent)
        norms = columns.square().sum(dim=1)
        for at, rows in self._blocks():
            for part in slices(len(rows), max(rows.shape[1], len(centroids)), _PRODUCT_ELEMENTS):
                numbers = _integers(rows[part], self._exponent).to(rows.device)
                products = torch.addmm(norms.to(rows.device), numbers, columns.to(rows.device).T, alpha=-2)
                squared = products.amin(dim=1) + numbers.square().sum(dim=1)
                whole = slice(at + part.start, at + part.stop)
                np.minimum(self.nearest[whole], squared.cpu().numpy(), out=self.nearest[whole])
        self._cumulative = None

    @property
    def weights(self) -> Int64:
        """Sampling weights (n,): the squared distances, at least 1 where they are not 0."""
        scaled = np.ldexp(self.nearest, -self._shift).astype(np.int64)
        weights = np.maximum(scaled, self.nearest > 0)
        return weights if self._multiplicity is None else weights * self._multiplicity

    def total(self) -> int:
        """Sum of the weights."""
        if self._cumulative is None:
            self._cumulative = np.cumsum(self.weights)
        return int(self._cumulative[-1]) if len(self._cumulative) else 0

    def find(self, targets: list[int]) -> Int64:
        """Numbers of the rows at which the running sum of weights first exceeds each target."""
        self.total()
        assert self._cumulative is not None
        return np.searchsorted(self._cumulative, np.array(targets, np.int64), side="right").astype(np.int64)


def _precision(geometry: Geometry) -> tuple[int, int]:
    """Exponent of the rows' rounding step, and the number of bits dropped from squared distances to make weights."""
    bits = (51 - max(1, geometry.dimension - 1).bit_length()) // 2
    largest = int(np.frexp(geometry.largest)[1])
    return largest - bits, max(0, 53 + geometry.rows.bit_length() - 62)


def _integers(rows: Rows, exponent: int) -> torch.Tensor:
    return tensor_of(rows).double().mul(2.0**-exponent).round_()


def exact_squares(left: Float32, right: Float32, geometry: Geometry) -> Float64:
    """Squared distances (m, l) between rows (m, d) and (l, d), in the same integers as the draws."""
    exponent, _ = _precision(geometry)
    a, b = _integers(left, exponent), _integers(right, exponent)
    squares = a.square().sum(dim=1)[:, None] - 2 * a @ b.T + b.square().sum(dim=1)
    return squares.numpy()


def random_rows(shards: Shards, k: int, seed: int, start: int) -> Float32:
    """Draw k distinct rows, all equally likely: those with the largest hashed keys."""
    parts = shards.map(_random_rows, k, Draw(seed, start, Purpose.RANDOM_ROWS, 0))
    whole = Sample(*(np.concatenate([part[i] for part in parts]) for i in range(3)))
    return whole.rows[np.lexsort((whole.indices, -whole.keys))[:k]]


def _random_rows(shard: Shard, count: int, draw: Draw) -> Sample:
    keys = uniforms(draw, shard.numbers)
    at = np.argsort(-keys, kind="stable")[:count].astype(np.int64)
    return Sample(keys[at], shard.numbers[at], _single(shard.take(at)))


def _single(rows: Rows) -> Float32:
    return tensor_of(rows).float().numpy()


def plus_plus(shards: Shards, k: int, seed: int, start: int, geometry: Geometry, told: Told) -> Float32:
    """Draw centroids by k-means++; once every row coincides with a drawn one, further centroids are random rows.

    Args:
        shards: partitions of at least k rows.
        k: number of centroids.
        seed: together with `start`, determines the draws.
        start: number of the start.
        geometry: geometry of all rows.
        told: see `Told`.

    Returns:
        (k, d) float32.
    """
    return _grow(shards, random_rows(shards, 1, seed, start), k, seed, start, geometry, told)


def _grow(shards: Shards, centroids: Float32, k: int, seed: int, start: int, geometry: Geometry, told: Told) -> Float32:
    known, drawn = 0, 0
    while len(centroids) < k:
        totals = _tell_all(shards, centroids, known, geometry)
        known = len(centroids)
        if not any(total for _, total in totals):
            return np.concatenate([centroids, random_rows(shards, k - known, seed, start + 1)])
        steps = np.arange(drawn, drawn + min(known, LARGEST_BATCH, k - known), dtype=np.int64)
        drawn += len(steps)
        candidates = _candidates(shards, hashes(Draw(seed, start, Purpose.CANDIDATES, 0), steps), totals, centroids, geometry)
        accepted = _accept(candidates, uniforms(Draw(seed, start, Purpose.ACCEPTANCE, 0), steps), geometry)
        centroids = np.concatenate([centroids, candidates.rows[accepted]])
        told(len(centroids))
    return centroids


class Candidates(NamedTuple):
    """Drawn rows: the numbers of their draws (m,), the rows (m, d), and their squared distances (m,) to the centroids."""

    draws: Int64
    rows: Float32
    distances: Float64


Totals = list[tuple[int, int]]
"""For each partition, the number of its first row and the sum of its weights."""


def _accept(candidates: Candidates, coins: Float64, geometry: Geometry) -> list[int]:
    accepted: list[int] = []
    squares = exact_squares(candidates.rows, candidates.rows, geometry)
    for i, before in enumerate(candidates.distances):
        now = min([before, *(squares[i, j] for j in accepted)])
        if coins[i] * before < now:
            accepted.append(i)
    return accepted


def _tell_all(shards: Shards, centroids: Float32, known: int, geometry: Geometry) -> Totals:
    """Send the shards the centroids after the first `known`; if a shard has lost those, send all centroids to all shards."""
    answers = shards.map(_tell, centroids[known:], known, geometry)
    while None in answers:
        answers = shards.map(_tell, centroids, 0, geometry)
    return [answer for answer in answers if answer is not None]


def _tell(shard: Shard, centroids: Float32, known: int, geometry: Geometry) -> tuple[int, int] | None:
    told, distances = shard.memory.get("seeding", (-1, None))
    if known == 0:
        distances = IntegerDistances(shard.tensors, len(shard), geometry, shard.memory.get("multiplicity"))
    elif told != known:
        return None
    distances.add(centroids)
    shard.memory["seeding"] = (known + len(centroids), distances)
    return shard.first, distances.total()


def _candidates(shards: Shards, bits: Words, totals: Totals, centroids: Float32, geometry: Geometry) -> Candidates:
    """The rows at random points of the running sum of weights over all partitions."""
    whole = sum(total for _, total in totals)
    targets = [int(value) * whole >> 64 for value in bits]
    answers = shards.map(_find, targets, totals, len(centroids))
    while None in answers:
        totals = _tell_all(shards, centroids, 0, geometry)
        answers = shards.map(_find, targets, totals, len(centroids))
    found = Candidates(*(np.concatenate([answer[i] for answer in answers if answer is not None]) for i in range(3)))
    order = np.argsort(found.draws)
    return Candidates(found.draws[order], found.rows[order], found.distances[order])


def _find(shard: Shard, targets: list[int], totals: Totals, known: int) -> Candidates | None:
    told, distances = shard.memory.get("seeding", (-1, None))
    if told != known:
        return None
    before = sum(total for first, total in totals if first < shard.first)
    draws = [i for i, target in enumerate(targets) if before <= target < before + distances.total()]
    at = distances.find([targets[i] - before for i in draws])
    return Candidates(np.array(draws, np.int64), _single(shard.take(at)), distances.nearest[at])


def forget(shards: Shards) -> None:
    """Free the state that the shards keep for the draws."""
    shards.map(_forget)


def _forget(shard: Shard) -> None:
    shard.memory.pop("seeding", None)


def parallel(shards: Shards, k: int, seed: int, start: int, geometry: Geometry, told: Told) -> Float32:
    """Draw centroids by k-means|| (Bahmani et al. 2012, Algorithm 2): a few passes over the rows, each drawing many.

    In each of five rounds every row is drawn independently with probability min(1, (k / 2) D / sum of D); the drawn rows,
    weighted by the number of rows nearest to each, are then reduced to k by k-means++. If too few distinct rows were drawn,
    k-means++ over all rows is used instead. Arguments and result are those of `plus_plus`.
    """
    candidates, known = random_rows(shards, 1, seed, start), 0
    for step in range(PARALLEL_ROUNDS):
        whole = sum(total for _, total in _tell_all(shards, candidates, known, geometry))
        known, question = len(candidates), (Draw(seed, start, Purpose.PARALLEL, step), k / 2, whole)
        drawn = shards.map(_spread, known, *question)
        while None in drawn:
            _tell_all(shards, candidates, 0, geometry)
            drawn = shards.map(_spread, known, *question)
        candidates = np.concatenate([candidates, *(rows for part in drawn for rows in part or [])])
        told(k * (step + 1) // (2 * PARALLEL_ROUNDS))
    candidates = np.unique(candidates, axis=0)
    if len(candidates) < k:
        return plus_plus(shards, k, seed, start, geometry, told)
    weighted = Shard(candidates)
    weighted.memory["multiplicity"] = popularity = np.sum(shards.map(_popularity, candidates), axis=0)
    bits = int(hashes(Draw(seed, start, Purpose.RANDOM_ROWS, 1), np.zeros(1, np.int64))[0])
    first = np.searchsorted(np.cumsum(popularity), bits * int(popularity.sum()) >> 64, side="right")
    return _grow(LocalShards([weighted]), candidates[[first]], k, seed, start, geometry, lambda n: told((k + n) // 2))


def _spread(shard: Shard, known: int, draw: Draw, expected: float, whole: int) -> list[Float32] | None:
    """The rows drawn in this round, in a list because `None in` cannot compare arrays."""
    told, distances = shard.memory.get("seeding", (-1, None))
    if told != known:
        return None
    coins = uniforms(draw, shard.numbers)
    at = np.flatnonzero(coins * whole < expected * distances.weights.astype(np.float64))
    return [_single(shard.take(at.astype(np.int64)))]


def _popularity(shard: Shard, candidates: Float32) -> Int64:
    return np.bincount(shard.labels(candidates), minlength=len(candidates)).astype(np.int64)
