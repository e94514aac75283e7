"""Assignment of rows to batches: determined by the rows, the seed and the rows per optimiser step, not by the workers.

Rows sorted by row id are cut into as many parts as there are workers, and every part into columns, one for each of its
rows in an optimiser step. Each epoch shuffles every column separately, and step `s` takes entry `s` of every column. So a
row never leaves its part, and a worker holds only its own part; two workers with batches of two take the same steps as one
worker with batches of four; and if fewer workers than parts are available, some of them hold several parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def part_bounds(rows: int, parts: int) -> list[int]:
    """The first row of each part, and the number of rows: (parts + 1,) ascending."""
    return [part * rows // parts for part in range(parts + 1)]


def parts_of(worker: int, workers: int, parts: int) -> range:
    """The parts held by a worker."""
    return range(worker * parts // workers, (worker + 1) * parts // workers)


def column_bounds(rows: int, columns: int, held: range) -> list[int]:
    """Bounds of the columns held by a worker, counted from its own first row: (columns held + 1,) ascending.

    Args:
        rows: number of rows of all workers.
        columns: number of columns of all workers.
        held: the columns of this worker.
    """
    first = held.start * rows // columns
    return [column * rows // columns - first for column in range(held.start, held.stop + 1)]


def plan_steps(sizes: Sequence[int], held: range, steps: int, epochs: int, seed: int) -> list[list[int]]:
    """The entries of every optimiser step of one worker.

    Args:
        sizes: number of entries in each held column; entries are numbered consecutively across columns.
        held: the numbers of these columns among those of all workers.
        steps: steps per epoch, equal to the entries in the longest column of any worker. If a column is shorter, some of the
            steps take nothing from it.
        epochs: passes over the entries.
        seed: seed of the order; the same for all workers.

    Returns:
        (epochs x steps) lists of entries, every entry once per epoch.
    """
    starts, planned = np.cumsum([0, *sizes]), []
    for epoch in range(epochs):
        orders = [np.random.default_rng([seed, epoch, column]).permutation(steps) for column in held]
        for step in range(steps):
            taken = [(start, order[step], size) for start, order, size in zip(starts, orders, sizes, strict=False)]
            planned.append([int(start + entry) for start, entry, size in taken if entry < size])
    return planned


def cut_steps(steps: Sequence[Sequence[int]], batch_size: int, batches: int) -> list[list[int]]:
    """Cut every step into `batches` batches of at most `batch_size` entries; some may be empty: all workers need as many."""
    return [list(step[i * batch_size : (i + 1) * batch_size]) for step in steps for i in range(batches)]
