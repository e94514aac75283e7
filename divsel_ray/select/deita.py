"""DEITA (Liu et al. 2023, "What Makes Good Data for Alignment?"): the best rows, skipping any similar to a chosen one.

Rows are visited in order of quality (DEITA's own is complexity x quality, which a quality column may contain). A row is
chosen if its cosine with every chosen row is below `threshold`, and skipped otherwise. If the filter leaves too few rows,
the skipped ones follow in order of quality. The gain of a row is its quality, or NaN if it had been skipped, which marks
such rows. A row without quality counts as its cluster's mean. If no row has a quality, the order is a hash of seed and row
id, and the gain of a row that passes is 0.

Time O(n b d) at most, in matrix products: a block of rows against those chosen so far, then within the block. Memory O(n d)
in addition to the vectors. Exact, on vectors rounded to the lattice of `lattice.py` (cosines to about 1e-4; equal rows: 1).
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.data.hashing import uniform_hash
from divsel_ray.select import lattice as lattices
from divsel_ray.select.kmq import known_quality
from divsel_ray.select.lattice import Lattice, blocks, product
from divsel_ray.select.sampler import Candidates, Greedy, Picks

_BLOCK_ROWS = 1 << 10
_CHOSEN_AT_ONCE = 1 << 12


def _choose(candidates: Candidates, taken: np.ndarray, count: int, config: SelectConfig, seed: int) -> Picks:
    if candidates.vectors is None:
        raise ValueError("DEITA needs the vectors of the candidates")
    order, gain = _ranking(candidates, seed)
    order = order[np.isin(order, taken, invert=True)]
    passing = _unlike(Lattice(candidates.vectors), order, np.asarray(taken, np.int64), config.threshold, count)
    passed_over = order[np.isin(order, passing, invert=True)][: count - len(passing)]
    gains = np.concatenate([gain[passing], np.full(len(passed_over), np.nan)])
    return Picks(np.concatenate([passing, passed_over]), gains)


def _ranking(candidates: Candidates, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All positions, best first, and each row's gain."""
    quality = candidates.quality
    finite = np.isfinite(quality)
    if not finite.any():
        return np.argsort(uniform_hash(seed, "deita", candidates.row_ids), kind="stable"), np.zeros(len(quality))
    known = known_quality(candidates)
    largest = np.abs(quality[finite]).max()
    return np.argsort(-known, kind="stable"), np.where(finite, quality, known * (largest if largest > 0 else 1.0))


def _unlike(points: Lattice, order: np.ndarray, taken: np.ndarray, threshold: float, count: int) -> np.ndarray:
    """The first rows, at most `count`, that are dissimilar to those before them and to those taken."""
    chosen = [taken]
    found = 0
    for part in blocks(len(order), _BLOCK_ROWS):
        if found >= count:
            break
        block = order[part]
        block = block[~_like_any(points, block, np.concatenate(chosen), threshold)]
        chosen.append(_unlike_each_other(points, block, threshold))
        found += len(chosen[-1])
    return np.concatenate([taken[:0], *chosen[1:]])[:count]


def _like_any(points: Lattice, rows: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """Whether each row is similar to any of the others, (m,) bool."""
    like = np.zeros(len(rows), bool)
    for part in blocks(len(others), _CHOSEN_AT_ONCE):
        like |= _alike(points, rows, others[part], threshold).any(axis=1)
    return like


def _unlike_each_other(points: Lattice, rows: np.ndarray, threshold: float) -> np.ndarray:
    alike = _alike(points, rows, rows, threshold)
    open_, chosen = np.ones(len(rows), bool), []
    for place in range(len(rows)):
        if open_[place]:
            chosen.append(place)
            open_ &= ~alike[place]
    return rows[chosen]


def _alike(points: Lattice, rows: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """Whether the cosine reaches the threshold, (a, b) bool. Compares squares, which are exact for a threshold of 1."""
    products = product(points.rows(rows), points.rows(others)).astype(np.float64)
    least = np.multiply.outer(points.squared[rows] * threshold**2, points.squared[others])
    return (products > 0) & (np.square(products) >= least)


def memory(n: int, d: int, k: int, b: int, config: SelectConfig) -> int:
    """Bytes needed in addition to the vectors."""
    at_once = min(b, _CHOSEN_AT_ONCE)
    return lattices.memory(n, d) + 64 * n + _BLOCK_ROWS * (32 * max(at_once, _BLOCK_ROWS) + 8 * d) + 8 * d * at_once


SAMPLER = Greedy(
    "the best rows, skipping any similar to a chosen one (DEITA), O(n b d) time",
    choose=_choose,
    memory=memory,
    needs=("quality", "vectors"),
    by_quality=True,
)
