"""Facility location: the rows that best represent the pool, each row being represented by the most similar chosen one.

Greedily chooses a set S that maximises f(S) = sum over all rows i of max over j in S of s_ij, to at least 1 - 1/e of the
optimum (Nemhauser, Wolsey and Fisher 1978). s_ij is the cosine if one row is among the other's `neighbours` nearest and 0
otherwise, so a row represents only nearby rows. Lazy greedy (Minoux 1978; `lazy.py`) chooses the same rows as plain greedy.
A gain is computed from a row's edges alone, at a cost independent of n. Hence neither the sampled gains of stochastic greedy
(Mirzasoleiman et al. 2015) nor the two rounds of GreeDi (Mirzasoleiman et al. 2013) are needed, and a larger budget
starts with the rows of a smaller one. Only the graph is approximate for large n (`graph.py`).

Time O(n^2 d) for the graph up to 65,536 rows and O(n d) x 16,384 beyond, then a few dozen gain computations per chosen row
(43 with 55,185 instructions and 5,000 chosen). Memory about 34 bytes per edge, n x `neighbours` edges. Similarities are
multiples of 2^-16 and their sums are exact in float64, so the result does not depend on the order of summation. A row adds
nothing only if a chosen row equals it (to 1e-5 of cosine); such rows come last, by row id.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from divsel_ray.config import SelectConfig
from divsel_ray.select import graph as graphs
from divsel_ray.select.graph import Graph, neighbour_graph
from divsel_ray.select.lattice import blocks
from divsel_ray.select.lazy import extend_greedily
from divsel_ray.select.sampler import Candidates, Greedy, Picks

_EDGE_BYTES = 34
"""8 for the graph itself, twice that once it is symmetric and as much during the conversion; indices may take 8 bytes."""
_ROWS_AT_ONCE = 1 << 15


class Coverage:
    """How well every row is represented by the chosen ones.

    Args:
        graph: neighbour graph of n rows; an edge counts both ways if either row lists the other.

    Attributes:
        cover: (n,) float32 similarity of each row to the most similar chosen one.
    """

    def __init__(self, graph: Graph) -> None:
        n, m = graph.indices.shape
        starts = np.arange(n + 1, dtype=np.int64) * m
        listed = sparse.csr_array((graph.similarity.ravel(), graph.indices.ravel(), starts), shape=(n, n))
        both = listed.maximum(listed.T.tocsr())
        self._starts, self._rows, self._similarity = both.indptr.tolist(), both.indices, both.data
        self.cover = np.zeros(n, np.float32)

    def gain(self, position: int) -> float:
        """What the row adds to the sum of `cover`."""
        edges = slice(self._starts[position], self._starts[position + 1])
        more = self._similarity[edges] - self.cover[self._rows[edges]]
        return float(np.maximum(more, 0.0, out=more).sum(dtype=np.float64))

    def gains(self) -> np.ndarray:
        """`gain` of every row, (n,) float64."""
        result = np.empty(len(self.cover))
        for part in blocks(len(result), _ROWS_AT_ONCE):
            starts = np.array(self._starts[part.start : part.stop + 1])
            edges = slice(starts[0], starts[-1])
            more = np.maximum(self._similarity[edges] - self.cover[self._rows[edges]], 0.0)
            # Every row has an edge to itself, so no sum is empty.
            result[part] = np.add.reduceat(more.astype(np.float64), starts[:-1] - starts[0])
        return result

    def add(self, position: int) -> None:
        """Choose the row, which then represents its neighbours."""
        edges = slice(self._starts[position], self._starts[position + 1])
        rows = self._rows[edges]
        self.cover[rows] = np.maximum(self.cover[rows], self._similarity[edges])


def coverage_of(candidates: Candidates, config: SelectConfig) -> Coverage:
    """Coverage of the candidates with no row chosen yet."""
    if candidates.vectors is None:
        raise ValueError("coverage needs the vectors of the candidates")
    return Coverage(neighbour_graph(candidates.vectors, candidates.cluster, config.neighbours))


def memory(n: int, d: int, k: int, b: int, config: SelectConfig) -> int:
    """Bytes needed in addition to the vectors."""
    return graphs.memory(n, d, config.neighbours) + _EDGE_BYTES * n * min(config.neighbours, n) + 100 * n


def _choose(candidates: Candidates, taken: np.ndarray, count: int, config: SelectConfig, seed: int) -> Picks:
    if count == 0:
        return Picks(np.empty(0, np.int64), np.empty(0))
    return extend_greedily(coverage_of(candidates, config), len(candidates), taken, count)


SAMPLER = Greedy(
    "rows that best represent all others: facility location on a neighbour graph, O(n^2 d) to 65,536 rows, O(n d) beyond",
    choose=_choose,
    memory=memory,
)
