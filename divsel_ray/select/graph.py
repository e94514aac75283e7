"""The cosine neighbour graph: for each row its nearest rows, including itself.

Up to 65,536 rows every pair is compared, in blocks: time O(n^2 d). Beyond that, the pool is partitioned into parts of at
most 8,192 rows: small clusters are joined and large ones split, always by halving along the line between two distant ends.
A row is then compared with its own part and with the parts whose means are nearest to its part's, until 16,384 rows are
covered: time O(n x 16,384 x d), never n^2. That is approximate, but it finds the nearest rows, which matter most to coverage.

Products are exact (see `lattice.py`), and so are the neighbours, ties by position; similarities are rounded to 2^-16.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from divsel_ray.select import lattice as lattices
from divsel_ray.select.lattice import Lattice, blocks, product

EXACT_ROWS = 1 << 16
"""Up to this many rows, all pairs are compared."""
PART_ROWS = 1 << 13
SEARCHED_ROWS = 1 << 14
_BLOCK_ELEMENTS = 1 << 26
"""Products held in memory at once: 256 MiB."""
_GRID = 2.0**16


class Graph(NamedTuple):
    """The nearest rows of each row.

    Attributes:
        indices: (n, m) int32, ascending in each row.
        similarity: (n, m) float32 cosines, multiples of 2^-16, negative ones set to 0; a row's own is 1.
    """

    indices: np.ndarray
    similarity: np.ndarray


class Reach(NamedTuple):
    """How far to search for neighbours.

    Attributes:
        exact: largest number of rows for which all pairs are compared.
        part: maximum rows per part beyond that.
        searched: minimum number of rows that each part's rows are compared with.
    """

    exact: int = EXACT_ROWS
    part: int = PART_ROWS
    searched: int = SEARCHED_ROWS


DEFAULT_REACH = Reach()


def neighbour_graph(vectors: np.ndarray, cluster: np.ndarray, neighbours: int, reach: Reach = DEFAULT_REACH) -> Graph:
    """Find the nearest rows of every row.

    Args:
        vectors: (n, d).
        cluster: (n,) cluster labels, any integers; rows of a cluster are similar.
        neighbours: number of nearest rows, including the row itself; capped at n.
        reach: how far to search.
    """
    points = Lattice(vectors)
    n, m = len(points), min(neighbours, len(points))
    graph = Graph(np.empty((n, m), np.int32), np.empty((n, m), np.float32))
    everything = np.arange(n)
    if n <= reach.exact:
        _search(points, everything, everything, graph)
        return graph
    parts = _parts(points, cluster, reach.part)
    means = Lattice(np.stack([points.total(part) for part in parts]))
    for number, part in enumerate(parts):
        _search(points, part, _surroundings(number, parts, means, max(reach.searched, m)), graph)
    return graph


def memory(n: int, d: int, neighbours: int) -> int:
    """Bytes of the graph and of its construction."""
    searched = n if n <= EXACT_ROWS else SEARCHED_ROWS + PART_ROWS
    return lattices.memory(n, d) + 8 * n * min(neighbours, n) + 4 * d * searched + 5 * min(_BLOCK_ELEMENTS, n * searched)


def _search(points: Lattice, rows: np.ndarray, pool: np.ndarray, graph: Graph) -> None:
    """Fill in the neighbours of some rows from a pool (ascending) that contains those rows."""
    columns = points.rows(pool)
    for part in blocks(len(rows), _BLOCK_ELEMENTS // max(1, len(pool))):
        _search_block(points, rows[part], pool, columns, graph)


def _search_block(points: Lattice, at: np.ndarray, pool: np.ndarray, columns: np.ndarray, graph: Graph) -> None:
    """A separate function, so that the products of one block are freed before those of the next are computed."""
    products = product(points.rows(at), columns)
    products[np.arange(len(at)), np.searchsorted(pool, at)] = np.inf
    column = _largest(products, graph.indices.shape[1])
    values = np.take_along_axis(products, column, axis=1)
    graph.indices[at] = pool[column]
    graph.similarity[at] = _cosine(values, points.squared[at], points.squared[pool][column])


def _largest(products: np.ndarray, m: int) -> np.ndarray:
    """Column indices (rows, m), ascending, of the m largest entries of each row; ties go to the lower column."""
    import torch

    width = min(m + 1, products.shape[1])
    values, columns = (tensor.numpy() for tensor in torch.topk(torch.from_numpy(products), width))
    chosen = columns[:, :m].copy()
    if width > m:
        # topk breaks ties arbitrarily.
        for row in np.flatnonzero(values[:, m - 1] == values[:, m]):
            above = np.flatnonzero(products[row] > values[row, m])
            equal = np.flatnonzero(products[row] == values[row, m])
            chosen[row] = np.concatenate([above, equal[: m - len(above)]])
    chosen.sort(axis=1)
    return chosen


def _cosine(products: np.ndarray, squared: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosines (a, m) on the grid; an infinite product denotes the row itself."""
    lengths = np.sqrt(np.maximum(squared[:, None] * others, 1.0))
    cosine = np.clip(products.astype(np.float64) / lengths, 0.0, 1.0)
    return (np.rint(cosine * _GRID) / _GRID).astype(np.float32)


def _parts(points: Lattice, cluster: np.ndarray, largest: int) -> list[np.ndarray]:
    """Ascending positions of the rows of each part: clusters joined or split into parts of at most `largest` rows."""
    order = np.argsort(cluster, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)
    means = Lattice(np.stack([points.total(rows) for rows in members]))
    sizes = np.array([len(rows) for rows in members])
    joined = [
        np.sort(np.concatenate([members[one] for one in group]))
        for group in _bisect(means, np.arange(len(means)), sizes, largest)
    ]
    ones = np.ones(len(points), np.int64)
    return [part for rows in joined for part in _bisect(points, rows, ones, largest)]


def _bisect(points: Lattice, at: np.ndarray, weights: np.ndarray, largest: int) -> list[np.ndarray]:
    """Halve the points at `at` until every part weighs at most `largest` or is a single point."""
    whole, done = [at], []
    while whole:
        part = whole.pop()
        if len(part) == 1 or weights[part].sum() <= largest:
            done.append(part)
        else:
            whole.extend(_halve(points, part, weights))
    return done


def _halve(points: Lattice, at: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of equal weight along the line from the point least similar to the others to the one least similar to it."""
    end = at[points.project(at, points.total(at)).argmin()]
    other = at[points.project(at, points.values[end].astype(np.float64)).argmin()]
    line = points.values[other].astype(np.float64) - points.values[end]
    order = at[np.argsort(points.project(at, line), kind="stable")]
    weight = np.cumsum(weights[order])
    cut = int(np.clip(np.searchsorted(weight, weight[-1] / 2) + 1, 1, len(at) - 1))
    return np.sort(order[:cut]), np.sort(order[cut:])


def _surroundings(number: int, parts: list[np.ndarray], means: Lattice, searched: int) -> np.ndarray:
    """Rows of a part and of the parts nearest to it, ascending: at least `searched` rows, or all."""
    alike = product(means.rows(slice(number, number + 1)), means.rows(slice(None)))[0]
    alike[number] = np.inf
    nearest = np.argsort(-alike, kind="stable")
    sizes = np.cumsum([len(parts[one]) for one in nearest])
    reached = int(np.searchsorted(sizes, searched)) + 1
    return np.sort(np.concatenate([parts[one] for one in nearest[:reached]]))
