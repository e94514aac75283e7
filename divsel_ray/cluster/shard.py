"""The rows of one partition, and the computations of k-means on them.

A result depends on the rows and the arguments alone. The state that a shard keeps (mainly its last assignment) only saves
time: a shard that is lost and read again returns the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from divsel_ray.cluster import kernels, repair
from divsel_ray.cluster.exact import Float32, Float64, Grid, Int64, digest, exact_parts
from divsel_ray.cluster.kernels import Assignment, Bounds, Move, Rows
from divsel_ray.cluster.repair import Farthest
from divsel_ray.cluster.rows import Held, ShardRows
from divsel_ray.cluster.screen import Screen

Step = Callable[[torch.Tensor, Bounds, Screen], Screen]
"""Updates the bounds of a block of rows; returns the screen for the next block."""


class Inspection(NamedTuple):
    """Properties of a partition's rows, determined before the first iteration.

    Attributes:
        rows: number of rows.
        bad: global number of the first row that is not finite or too large, or None.
        zero: global number of the first row of norm 0, or None.
        largest: largest absolute value of a feature.
        squared_norms: exact sum of the squared norms, in parts.
        digest: hash of the rows' bytes and numbers, summed modulo 2^64.
    """

    rows: int
    bad: int | None
    zero: int | None
    largest: float
    squared_norms: Int64
    digest: int = 0


class Change(NamedTuple):
    """Changes in the sums and counts of clusters from one set of centroids to the next.

    Attributes:
        clusters: (m,) clusters that gained or lost a row.
        sums: (m, d) exact changes of the sums.
        counts: (m,) changes of the counts.
    """

    clusters: Int64
    sums: Float64
    counts: Int64


class Shard:
    """The rows (n, d) of one partition.

    Args:
        rows: the rows, or their source.
        first: global number of the first row; the others follow consecutively unless `numbers` is given.
        numbers: (n,) ascending global numbers, if they are not consecutive.

    Attributes:
        first: see above.
        memory: state that functions called on a shard may keep between calls.
    """

    def __init__(self, rows: Rows | ShardRows, first: int = 0, numbers: Int64 | None = None) -> None:
        self._source: ShardRows = Held(rows) if isinstance(rows, (np.ndarray, torch.Tensor)) else rows
        self.first = first
        self._numbers = numbers
        self.memory: dict[str, Any] = {}
        self._known: Bounds | None = None
        self._largest_norm = 0.0
        self._centroids: Float32 | None = None
        self._screen: Screen | None = None
        self._sums: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._source)

    @property
    def numbers(self) -> Int64:
        """Global numbers (n,) of the rows."""
        return np.arange(self.first, self.first + len(self), dtype=np.int64) if self._numbers is None else self._numbers

    def tensors(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of consecutive rows, each with the local number of its first row, on the device of the rows."""
        return self._source.blocks()

    def sample(self, indices: Int64) -> Shard:
        """Some of the rows, by their local numbers, as a separate shard."""
        return Shard(Held(self._source.take(indices)), self.first, self.numbers[indices])

    def take(self, indices: Int64) -> Rows:
        """Rows with these local numbers, in this order."""
        host = self._source.take(indices).cpu()
        return host if host.dtype == torch.bfloat16 else host.numpy()

    def inspect(self) -> Inspection:
        """Count the rows, find unusable ones, and measure what sums and variance need, in one pass."""
        norms, largest, total, numbers = [np.empty(0)], 0.0, 0, self.numbers
        for start, rows in self.tensors():
            norms.append(_squared_norms(rows))
            largest = max(largest, float(rows.abs().max()))
            total += digest(rows.cpu(), numbers[start : start + len(rows)])
        squared = np.concatenate(norms)
        self._remember(squared)
        bad, zero = np.flatnonzero(~(squared <= kernels.LARGEST_SQUARED_NORM)), np.flatnonzero(squared == 0)
        if len(bad):
            return Inspection(len(squared), int(numbers[bad[0]]), None, 0.0, exact_parts(squared[:0]))
        first_zero = int(numbers[zero[0]]) if len(zero) else None
        return Inspection(len(squared), None, first_zero, largest, exact_parts(squared), total % 2**64)

    def _remember(self, squared_norms: Float64) -> Bounds:
        """Create the bounds from the squared norms (n,)."""
        known = Bounds.empty(len(squared_norms))
        with np.errstate(over="ignore", invalid="ignore"):
            known.norms[:] = torch.from_numpy(squared_norms)
            self._largest_norm = kernels.largest_norm(squared_norms)
        self._known, self._centroids, self._screen = known, None, None
        return known

    def change(self, before: Float32 | None, centroids: Float32, grid: Grid) -> Change:
        """Assign the rows to new centroids, and return the changes.

        Args:
            before: (k, d) centroids of the previous assignment; None if no row was in any cluster.
            centroids: (k, d) centroids to assign to.
            grid: grid that rows are rounded to in the sums.
        """
        if before is None:
            self._centroids = None
        else:
            self._bring_to(before)
        if self._sums is None or self._sums.shape != centroids.shape:
            self._sums = torch.zeros(centroids.shape, dtype=torch.float64, device=self._source.device)
        ledger = _Ledger(self._sums, grid, fresh=before is None)
        try:
            self._bring_to(centroids, ledger)
            return ledger.change()
        except BaseException:
            self._sums = None
            raise

    def counts(self, centroids: Float32) -> Int64:
        """Number of rows (k,) nearest to each centroid."""
        return np.bincount(self._bring_to(centroids).labels.numpy(), minlength=len(centroids)).astype(np.int64)

    def assign(self, centroids: Float32) -> Assignment:
        """Labels and squared distances of the rows."""
        labels = self.labels(centroids)
        parts = [kernels.own_distances(rows, centroids, labels[at : at + len(rows)]) for at, rows in self.tensors()]
        return Assignment(labels, np.concatenate(parts or [np.empty(0)]))

    def labels(self, centroids: Float32) -> kernels.Int32:
        """Nearest centroid (n,) of every row."""
        return self._bring_to(centroids).labels.numpy().copy()

    def inertia(self, centroids: Float32) -> Int64:
        """Exact sum of the squared distances, in parts."""
        return exact_parts(self.assign(centroids).squared_distances)

    def farthest(self, centroids: Float32, count: int) -> Farthest:
        """The rows farthest from their centroids; only rows whose bounds reach that far are measured."""
        known = self._bring_to(centroids)
        upper = 2 * known.upper.numpy().astype(np.float64)
        order = np.argsort(-upper, kind="stable")
        size = min(4 * count, len(order))
        while True:
            at = np.sort(order[:size])
            labels = known.labels.numpy()[at]
            rows = self._source.take(at)
            squared = kernels.own_distances(rows, centroids, labels)
            found = repair.farthest(squared, count)
            if size == len(order) or (len(found) == count and upper[order[size]] < squared[found[-1]]):
                break
            size = min(4 * size, len(order))
        return Farthest(squared[found], self.numbers[at[found]], labels[found], rows.float().cpu().numpy()[found])

    def _bring_to(self, centroids: Float32, ledger: _Ledger | None = None) -> Bounds:
        """Bring the bounds up to date with these centroids, and enter rows that change clusters in the ledger."""
        known = self._known
        if known is None:
            norms = [_squared_norms(rows) for _, rows in self.tensors()]
            known = self._remember(np.concatenate([np.empty(0), *norms]))
        known_to, self._centroids = self._centroids, None
        step = self._step(known_to, centroids)
        if step is None:
            self._centroids = known_to
            return known
        assert self._screen is not None
        for start, rows in self.tensors():
            part = known.part(start, start + len(rows))
            before = part.labels.clone()
            self._screen = step(rows, part, self._screen)
            if ledger is not None:
                ledger.enter(rows, before, part.labels)
        self._centroids = np.array(centroids)
        return known

    def _step(self, before: Float32 | None, centroids: Float32) -> Step | None:
        """The function that updates a block; None if no centroid moved."""
        if before is None or self._screen is None or before.shape != centroids.shape:
            return self._whole_step(centroids)
        move = Move.between(before, centroids)
        if not len(move.moved):
            return None
        new = centroids[move.moved]
        norms = kernels.squared_norms(new)
        if not self._screen.takes(norms):
            return self._whole_step(centroids)
        whole = self._screen
        whole.replace(move.moved, new, norms)
        if len(move.moved) > kernels.FULL_PASS_SHARE * len(centroids):
            return lambda rows, known, screen: kernels.assign_all(rows, centroids, screen, known)
        moved = whole.part(move.moved)
        return lambda rows, known, screen: kernels.reassign(rows, move, moved, screen, known)

    def _whole_step(self, centroids: Float32) -> Step:
        norms, kind = kernels.squared_norms(centroids), self._screen.kind if self._screen else None
        self._screen = Screen(centroids, norms, self._largest_norm, self._source.dtype, self._source.device, kind)
        return lambda rows, known, screen: kernels.assign_all(rows, centroids, screen, known)


def _squared_norms(rows: torch.Tensor) -> Float64:
    with np.errstate(over="ignore", invalid="ignore"):
        return kernels.squared_norms(rows)


class _Ledger:
    """Sums up the rows that clusters gain and lose.

    Args:
        sums: (k, d) float64 zeros, reset to zeros in the end; a new array each time would fragment the memory.
        grid: grid that rows are rounded to.
        fresh: whether no row was in any cluster before.
    """

    def __init__(self, sums: torch.Tensor, grid: Grid, *, fresh: bool) -> None:
        self._sums, self._grid, self._fresh = sums, grid, fresh
        self._counts, self._touched = np.zeros(len(sums), np.int64), np.zeros(len(sums), bool)

    def enter(self, rows: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
        """Enter rows (n, d) with their labels (n,) before and after."""
        if self._fresh:
            self._add(rows, after, 1)
            return
        changed = torch.nonzero(before != after)[:, 0]
        if len(changed):
            values = rows[changed.to(rows.device)]
            self._add(values, before[changed], -1)
            self._add(values, after[changed], 1)

    def _add(self, rows: torch.Tensor, labels: torch.Tensor, sign: int) -> None:
        kernels.accumulate(rows, labels, self._sums, self._grid, sign)
        self._touched[labels.numpy()] = True
        self._counts += sign * np.bincount(labels.numpy(), minlength=len(self._counts))

    def change(self) -> Change:
        """Return the sum of all entries."""
        clusters = np.flatnonzero(self._touched)
        place = torch.from_numpy(clusters).to(self._sums.device)
        sums = self._sums[place].cpu().numpy()
        self._sums[place] = 0
        return Change(clusters, sums, self._counts[clusters])
