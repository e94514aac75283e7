"""One partition's rows and the questions of k-means they answer.

An answer depends on the rows and the arguments alone. What a shard remembers (its last assignment, sums) only saves time:
a shard that was lost and read again gives the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from divsel_ray.cluster import kernels, repair, screen
from divsel_ray.cluster.exact import Float32, Float64, Grid, Int64, exact_parts
from divsel_ray.cluster.kernels import Assignment, Known, Move, Rows
from divsel_ray.cluster.repair import Farthest
from divsel_ray.cluster.rows import Held, Source


class Inspection(NamedTuple):
    """What is known of rows before the first iteration.

    Attributes:
        rows: how many there are.
        bad: global number of the first row that is not finite or too large, or None.
        zero: global number of the first row of norm 0, or None.
        largest: largest absolute value of a feature.
        squared_norms: exact sum of the squared norms, in parts.
    """

    rows: int
    bad: int | None
    zero: int | None
    largest: float
    squared_norms: Int64


class Partial(NamedTuple):
    """A partition's share of one iteration: sums (k, d) and counts (k,)."""

    sums: Float64
    counts: Int64


class Shard:
    """The rows (n, d) of one partition.

    Args:
        rows: themselves, or where they are.
        first: global number of the first one; the others follow it.
        numbers: (n,) ascending global numbers, where they do not.

    Attributes:
        first: see above.
        memory: what functions that are asked of a shard may keep between calls.
    """

    def __init__(self, rows: Rows | Source, first: int = 0, numbers: Int64 | None = None) -> None:
        self._source: Source = Held(rows) if isinstance(rows, (np.ndarray, torch.Tensor)) else rows
        self.first = first
        self._numbers = numbers
        self.memory: dict[str, Any] = {}
        self._known: Known | None = None
        self._largest_norm = 0.0
        self._centroids: Float32 | None = None
        self._sums: tuple[Grid, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._source)

    @property
    def numbers(self) -> Int64:
        """Global numbers (n,) of the rows."""
        return np.arange(self.first, self.first + len(self), dtype=np.int64) if self._numbers is None else self._numbers

    @property
    def dimension(self) -> int:
        """Features of a row."""
        return self._source.dimension

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """Consecutive rows in NumPy (bfloat16 in PyTorch), each with the local number of its first."""
        for start, rows in self._source.blocks():
            host = rows.cpu()
            yield start, host if host.dtype == torch.bfloat16 else host.numpy()

    def tensors(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The same, where the rows are kept."""
        return self._source.blocks()

    def take(self, indices: Int64) -> Rows:
        """Rows of these local numbers, in this order."""
        host = self._source.take(indices).cpu()
        return host if host.dtype == torch.bfloat16 else host.numpy()

    def inspect(self) -> Inspection:
        """Count the rows, look for bad ones, and measure what sums and variance need."""
        norms = self._norms()
        bad = np.flatnonzero(~(norms <= kernels.LARGEST_SQUARED_NORM))
        if len(bad):
            return Inspection(len(norms), int(self.numbers[bad[0]]), None, 0.0, exact_parts(norms[:0]))
        zero = np.flatnonzero(norms == 0)
        largest = max((float(rows.abs().max()) for _, rows in self.tensors()), default=0.0)
        first_zero = int(self.numbers[zero[0]]) if len(zero) else None
        return Inspection(len(norms), None, first_zero, largest, exact_parts(norms))

    def _norms(self) -> Float64:
        """Squared norms (n,); remembered in float32 for the screens."""
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.concatenate([kernels.squared_norms(rows) for _, rows in self.tensors()] or [np.empty(0)])
            self._known, self._centroids, self._sums = Known.empty(len(norms)), None, None
            self._known.norms[:] = torch.from_numpy(norms)
            self._largest_norm = float(np.sqrt(norms.max(initial=0.0))) * (1 + 1e-6)
        return norms

    def measure(self, centroids: Float32, grid: Grid) -> Partial:
        """Assign the rows and sum them up by cluster."""
        known = self._bring_to(centroids, grid)
        assert self._sums is not None
        counts = torch.bincount(known.labels, minlength=len(centroids)).numpy()
        return Partial(self._sums[1].cpu().numpy().copy(), counts)

    def assign(self, centroids: Float32) -> Assignment:
        """Labels and squared distances of the rows."""
        labels = self.labels(centroids)
        parts = [kernels.own_distances(rows, centroids, labels[at : at + len(rows)]) for at, rows in self.tensors()]
        return Assignment(labels, np.concatenate(parts or [np.empty(0)]))

    def labels(self, centroids: Float32) -> kernels.Int32:
        """Nearest centroid (n,) of every row."""
        return self._bring_to(centroids, None).labels.numpy().copy()

    def inertia(self, centroids: Float32) -> Int64:
        """Exact sum of the squared distances, in parts."""
        return exact_parts(self.assign(centroids).squared_distances)

    def farthest(self, centroids: Float32, count: int) -> Farthest:
        """The rows farthest from their centroids."""
        labels, squared = self.assign(centroids)
        at = repair.farthest(squared, count)
        rows = self._source.take(at).float().cpu().numpy()
        return Farthest(squared[at], self.numbers[at], labels[at], rows)

    def _bring_to(self, centroids: Float32, grid: Grid | None) -> Known:
        """Make what is known fit these centroids, and where a grid is given also the sums."""
        if self._known is None:
            self._norms()
        assert self._known is not None
        if grid is not None and (self._sums is None or self._sums[0] != grid or self._sums[1].shape != centroids.shape):
            self._sums, self._centroids = None, None
        step = self._step(centroids)
        if step is None:
            return self._known
        sums = self._sums[1] if self._sums else None
        if grid is not None and sums is None:
            sums = torch.zeros(centroids.shape, dtype=torch.float64, device=self._source.device)
        grid = grid or (self._sums[0] if self._sums else None)
        incremental, self._centroids = self._sums is not None, None
        for start, rows in self.tensors():
            part = self._known.part(start, start + len(rows))
            before = part.labels.clone()
            step(rows, part)
            if grid is not None and sums is not None:
                _add_changes(rows, before if incremental else None, part.labels, sums, grid)
        self._centroids = np.array(centroids)
        self._sums = (grid, sums) if grid is not None and sums is not None else None
        return self._known

    def _step(self, centroids: Float32) -> Any:
        """What brings a block up to date; None where nothing moved."""
        screen_of = self._screen
        whole = screen_of(centroids)
        if self._centroids is None or self._centroids.shape != centroids.shape:
            self._sums = None
            return lambda rows, known: kernels.assign_all(rows, centroids, whole, known)
        move = Move.between(self._centroids, centroids)
        if not len(move.moved):
            return None
        if len(move.moved) > kernels.FULL_PASS_SHARE * len(centroids):
            return lambda rows, known: kernels.assign_all(rows, centroids, whole, known)
        moved = screen_of(centroids[move.moved])
        return lambda rows, known: kernels.reassign(rows, move, moved, whole, known)

    def _screen(self, centroids: Float32) -> screen.Screen:
        norms = kernels.squared_norms(centroids)
        return screen.Screen(centroids, norms, self._largest_norm, self._source.dtype, self._source.device)


def _add_changes(rows: torch.Tensor, before: torch.Tensor | None, after: torch.Tensor, sums: torch.Tensor, grid: Grid) -> None:
    """Bring the sums from one labelling of a block (none at first) to the next."""
    if before is None:
        kernels.accumulate(rows, after, sums, grid)
        return
    changed = torch.nonzero(before != after)[:, 0]
    if len(changed):
        values = rows[changed.to(rows.device)]
        kernels.accumulate(values, before[changed], sums, grid, -1)
        kernels.accumulate(values, after[changed], sums, grid)
