"""k-center greedy (Gonzalez 1985; Sener and Savarese 2018): always the row farthest from those chosen.

The first row is the one nearest to the mean of all. The largest distance of any row to its nearest chosen one is at most
twice the optimum for that number of rows. The gain of a row is its distance when it was chosen; NaN for the first row,
which had none.

A row's distance to the chosen ones never increases, so an old distance is an upper bound. Rows with the largest bounds are
updated by matrix products with the centres they have not been compared with. A window is kept of up-to-date rows that are
farther than the bound of any row outside; while it lasts, a choice costs one product with the window. Time O(n b d) at most,
far less for crowded rows. Memory O(n d) in addition to the vectors, and O(b) for the chosen rows.

Exact, ties by position, on vectors rounded to the lattice of `lattice.py`: squared distances are integers.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select import lattice as lattices
from divsel_ray.select.lattice import Lattice, blocks, product
from divsel_ray.select.sampler import Candidates, Greedy, Picks

_WINDOW = 1 << 11
_ROWS_AT_ONCE = 1 << 10
_CENTRES_AT_ONCE = 1 << 12
_FAR = 1 << 30
"""More than any squared distance on the lattice, 4 x 2^24."""


class Traversal:
    """Farthest-first traversal.

    Args:
        points: n rows.
        window: maximum number of rows kept up to date.

    Attributes:
        centres: positions chosen, in order.
        bound: (n,) int64 squared distance to the nearest centre that the row has been compared with; -1 for centres.
        met: (n,) int64 number of centres that each row has been compared with.
    """

    def __init__(self, points: Lattice, window: int = _WINDOW) -> None:
        self.points = points
        self.centres: list[int] = []
        self.bound = np.full(len(points), _FAR, np.int64)
        self.met = np.zeros(len(points), np.int64)
        self._largest_window = self._width = window
        self._open(np.empty(0, np.int64), -1)

    def add(self, position: int) -> None:
        """Make the row a centre."""
        self.centres.append(position)
        # On one thread: for a product this small, thread synchronisation costs more than it saves.
        products = np.einsum("ij,j->i", self._rows, self.points.rows(np.array([position]))[0])
        self._lower(self._window, self.points.squared[position] - 2.0 * products)
        self.met[self._window] = len(self.centres)
        self.bound[position] = -1

    def farthest(self) -> int:
        """The row with the largest distance to its nearest centre; at least one row must not be a centre."""
        while True:
            if len(self._window):
                keys = self._keys(self._window)
                best = int(keys.argmax())
                if keys[best] > self._outside:
                    return int(self._window[best])
            self._refresh()

    def distance(self, position: int) -> float:
        """Distance of an up-to-date row, for vectors of length 1."""
        return float(np.sqrt(self.bound[position]) / self.points.unit)

    def _keys(self, at: np.ndarray | slice) -> np.ndarray:
        """Integer keys that order rows by bound; among equal bounds the smallest position ranks highest."""
        n = len(self.points)
        return self.bound[at] * n + (n - 1 - np.arange(n)[at])

    def _refresh(self) -> None:
        """Update the rows with the largest bounds, and open a window on those that remain above all others."""
        keys = self._keys(slice(None))
        top, outside = _largest(keys, self._width)
        self._bring_up_to_date(top[self.met[top] < len(self.centres)])
        now = self._keys(top)
        ahead, now = top[now > outside], now[now > outside]
        # If few remain ahead, examine more rows next time.
        short = len(ahead) < self._largest_window // 4
        self._width = min(2 * self._width, len(self.points)) if short else max(self._width // 2, self._largest_window)
        kept, dropped = _largest(now, self._largest_window)
        self._open(np.sort(ahead[kept]), max(outside, dropped))

    def _open(self, window: np.ndarray, outside: int) -> None:
        self._window, self._outside = window, outside
        self._rows = self.points.rows(window)

    def _bring_up_to_date(self, stale: np.ndarray) -> None:
        stale = stale[np.argsort(self.met[stale], kind="stable")]
        centres = np.array(self.centres, np.int64)
        for part in blocks(len(stale), _ROWS_AT_ONCE):
            at = stale[part]
            rows, first = self.points.rows(at), int(self.met[at[0]])
            for some in blocks(len(centres) - first, _CENTRES_AT_ONCE):
                self._meet(at, rows, centres[first:][some])
            self.met[at] = len(centres)

    def _meet(self, at: np.ndarray, rows: np.ndarray, centres: np.ndarray) -> None:
        """Compare some rows (m, d) with centres."""
        products = product(rows, self.points.rows(centres))
        self._lower(at, (self.points.squared[centres] - 2.0 * products).min(axis=1))

    def _lower(self, at: np.ndarray, closer: np.ndarray) -> None:
        """Lower the bounds of some rows to squared distances, given without the rows' own squared norms (float64 integers)."""
        distance = (closer + self.points.squared[at]).astype(np.int64)
        self.bound[at] = np.minimum(self.bound[at], distance)


def _largest(keys: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Positions of the `count` largest of distinct keys, unordered, and the largest of the others, -1 if there is none."""
    if count >= len(keys):
        return np.arange(len(keys)), -1
    order = np.argpartition(keys, len(keys) - count - 1)
    return order[len(keys) - count :], int(keys[order[len(keys) - count - 1]])


def nearest_to_mean(points: Lattice) -> int:
    """The row nearest to the mean of all."""
    everything = np.arange(len(points))
    # n |x - mean|^2 minus the term common to all rows; integers below 2^53 for n < 2^27.
    return int((len(points) * points.squared - 2 * points.project(everything, points.total(everything))).argmin())


def _choose(candidates: Candidates, taken: np.ndarray, count: int, config: SelectConfig, seed: int) -> Picks:
    if candidates.vectors is None:
        raise ValueError("k-center greedy needs the vectors of the candidates")
    traversal = Traversal(Lattice(candidates.vectors))
    for position in taken:
        traversal.add(int(position))
    index, gain = np.empty(count, np.int64), np.empty(count)
    for done in range(count):
        first = not traversal.centres
        index[done] = nearest_to_mean(traversal.points) if first else traversal.farthest()
        gain[done] = np.nan if first else traversal.distance(index[done])
        traversal.add(int(index[done]))
    return Picks(index, gain)


def memory(n: int, d: int, k: int, b: int, config: SelectConfig) -> int:
    """Bytes needed in addition to the vectors."""
    products = _ROWS_AT_ONCE * min(b, _CENTRES_AT_ONCE) * 24
    return lattices.memory(n, d) + 56 * n + 64 * b + products + 6 * d * (_WINDOW + _ROWS_AT_ONCE + min(b, _CENTRES_AT_ONCE))


SAMPLER = Greedy(
    "always the row farthest from those chosen (k-center greedy), O(n b d) time at most",
    choose=_choose,
    memory=memory,
)
