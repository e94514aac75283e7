"""Facility location: the rows that represent the pool best, each row being represented by the chosen one most like it.

Chooses greedily a set S that makes f(S) = sum over all rows i of max over j in S of s_ij large (Nemhauser, Wolsey and Fisher
1978: at least 1 - 1/e of the best possible). s_ij is the cosine where one row is among the other's `neighbours` nearest
and 0 elsewhere, so that a row represents only what is near it. Greedy is lazy (Minoux 1978; `lazy.py`), which chooses the
same rows as plain greedy. A gain is worked out from a row's edges alone, whatever n: that is why neither the sampled
gains of stochastic greedy (Mirzasoleiman et al. 2015) nor the two rounds of GreeDi (Mirzasoleiman et al. 2013) are
needed, and why a larger budget begins with a smaller one's rows. What is approximated for large n is the graph (`graph.py`).

Time O(n^2 d) for the graph up to 65,536 rows and O(n d) x 16,384 beyond, then a few dozen looks at a row's edges for each
row chosen (43 of 55,185 instructions, 5,000 chosen). Memory about 34 bytes an edge, n x `neighbours` edges. Similarities are
multiples of 2^-16 and their sums exact in float64, so the rows depend on no order of summation. A row adds nothing only
when a chosen row equals it (to 1e-5 of cosine); such rows come last, by row id.
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
"""The graph's own 8, twice that once it is symmetric, and as much while it is made so; indices may take 8 bytes."""
_ROWS_AT_ONCE = 1 << 15


class Coverage:
    """How well every row is represented by those chosen.

    Args:
        graph: of n rows; an edge counts both ways, if either row lists the other.

    Attributes:
        cover: (n,) float32 similarity of each row to the chosen one most like it.
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
            # Every row has an edge to itself, so no sum is over nothing.
            result[part] = np.add.reduceat(more.astype(np.float64), starts[:-1] - starts[0])
        return result

    def add(self, position: int) -> None:
        """Let the row represent others."""
        edges = slice(self._starts[position], self._starts[position + 1])
        rows = self._rows[edges]
        self.cover[rows] = np.maximum(self.cover[rows], self._similarity[edges])


def coverage_of(candidates: Candidates, config: SelectConfig) -> Coverage:
    """How well the candidates are represented by none of them yet."""
    if candidates.vectors is None:
        raise ValueError("coverage needs the vectors of the candidates")
    return Coverage(neighbour_graph(candidates.vectors, candidates.cluster, config.neighbours))


def memory(n: int, d: int, k: int, b: int, config: SelectConfig) -> int:
    """Bytes beside the vectors."""
    return graphs.memory(n, d, config.neighbours) + _EDGE_BYTES * n * min(config.neighbours, n) + 100 * n


def _choose(candidates: Candidates, taken: np.ndarray, count: int, config: SelectConfig, seed: int) -> Picks:
    if count == 0:
        return Picks(np.empty(0, np.int64), np.empty(0))
    return extend_greedily(coverage_of(candidates, config), len(candidates), taken, count)


SAMPLER = Greedy(
    "rows that represent all others best: facility location on a neighbour graph, O(n^2 d) to 65,536 rows, O(n d) beyond",
    choose=_choose,
    memory=memory,
)
