"""Lazy greedy (Minoux 1978): a row's gain never grows as others are chosen, so an old gain is an upper bound.

Rows are queued in order of their bounds. The gain of the first one is recomputed; if it stays first, it is the row that
plain greedy would choose. Only a few rows are ever examined: most fall behind once and stay there.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from divsel_ray.select.sampler import Picks

_UNSEEN, _STALE = -2, -1


class Objective(Protocol):
    """A set function with diminishing returns: adding a row later never adds more."""

    def gain(self, position: int) -> float:
        """What the row adds to the chosen ones."""

    def add(self, position: int) -> int | None:
        """Choose the row; returns a row, if any, that may be chosen from now on and never adds more than this one."""


class CountableObjective(Objective, Protocol):
    """An objective that can compute all gains at once."""

    def gains(self) -> np.ndarray:
        """`gain` of every row, (n,) float64."""


def lazy_greedy(objective: Objective, positions: np.ndarray, bounds: np.ndarray, count: int) -> Picks:
    """Choose the row with the largest gain, `count` times; ties go to the smallest position.

    Time O(n log n) once, plus O(log n) and the objective's own time for each recomputed gain.

    Args:
        objective: the function to maximise.
        positions: (m,) rows to choose from.
        bounds: (m,) gains for an earlier, smaller or empty, set of chosen rows.
        count: rows to choose, at most as many as are available.
    """
    waiting = _by_bound(positions, bounds)
    heap: list[tuple[float, int, int]] = []
    _await_next(heap, waiting)
    index, gains = np.empty(count, np.int64), np.empty(count)
    done = 0
    while done < count:
        negative, position, stamp = heapq.heappop(heap)
        if stamp != done:
            if stamp == _UNSEEN:
                _await_next(heap, waiting)
            heapq.heappush(heap, (-objective.gain(position), position, done))
            continue
        index[done], gains[done] = position, -negative
        successor = objective.add(position)
        if successor is not None:
            heapq.heappush(heap, (negative, successor, _STALE))
        done += 1
    return Picks(index, gains)


def extend_greedily(objective: CountableObjective, n: int, taken: np.ndarray, count: int) -> Picks:
    """Add `count` of n rows to those already taken, by `lazy_greedy`.

    Args:
        objective: objective with no row chosen yet.
        n: number of rows.
        taken: (m,) positions.
        count: rows to choose, at most n - m.
    """
    for position in taken:
        objective.add(int(position))
    free = open_positions(n, taken)
    return lazy_greedy(objective, free, objective.gains()[free], count)


def _by_bound(positions: np.ndarray, bounds: np.ndarray) -> Iterator[tuple[float, int]]:
    order = np.lexsort((positions, -bounds))
    for place in order:
        yield -float(bounds[place]), int(positions[place])


def _await_next(heap: list[tuple[float, int, int]], waiting: Iterator[tuple[float, int]]) -> None:
    entry = next(waiting, None)
    if entry is not None:
        heapq.heappush(heap, (*entry, _UNSEEN))


def open_positions(n: int, taken: np.ndarray) -> np.ndarray:
    """Positions (n - m,) that are not taken, ascending."""
    free = np.ones(n, bool)
    free[taken] = False
    return np.flatnonzero(free)
