"""MIG (Chen et al. 2025, "MIG: Automatic Data Selection for Instruction Tuning by Maximizing Information Gain in Semantic
Space"): information that spreads over a graph of labels, each label with diminishing returns.

A row's label is its cluster, where the paper uses tags from a tagging model. The row adds its quality (its rank in (0, 1],
`quality.py`) to its own cluster and to similar ones: cluster c passes the share a_cj to cluster j, proportional to the
cosine of their mean vectors if that is at least 0.6 (1 for itself) and 0 otherwise. Shares sum to 1 and reach at most the
63 nearest clusters. Information is the sum over clusters of mass ** `concavity`; the row that adds the most is chosen next.
The paper connects tags from a cosine of 0.9, with another encoder; means of neighbouring clusters are seldom that close.

Only the best remaining row of a cluster can be chosen, so lazy greedy (`lazy.py`) runs over clusters: time
O(n (d + log n) + k^2 d) and about O(b) visits to a cluster's neighbours. Memory 2 n d bytes for the means and O(n + 64 k).
Exact: masses are sums of multiples of 2^-32 and gains are rounded to such, so no choice depends on the last bit. Without
vectors nothing spreads.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select import graph as graphs
from divsel_ray.select import lattice as lattices
from divsel_ray.select.graph import neighbour_graph
from divsel_ray.select.lattice import Lattice
from divsel_ray.select.lazy import lazy_greedy, open_positions
from divsel_ray.select.quality import ranked_quality
from divsel_ray.select.sampler import Candidates, Greedy, Picks

_ALIKE = 0.6
_NEIGHBOURS = 64
_GRID = 2.0**32


class Spread:
    """How the quality of each cluster's rows is distributed over clusters.

    Args:
        candidates: n rows in k clusters, with or without vectors.

    Attributes:
        clusters: for each cluster, (m,) receiving clusters, including itself.
        shares: for each cluster, (m,) float64 shares that sum to 1.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.clusters = [np.array([cluster]) for cluster in range(candidates.k)]
        self.shares = [np.ones(1) for _ in range(candidates.k)]
        if candidates.vectors is None or not len(candidates):
            return
        used, means = _means(candidates.vectors, candidates.cluster)
        graph = neighbour_graph(means, np.arange(len(used)), _NEIGHBOURS)
        for cluster, others, similarity in zip(used, graph.indices, graph.similarity.astype(np.float64), strict=True):
            alike = similarity >= _ALIKE
            self.clusters[cluster] = used[others[alike]]
            self.shares[cluster] = similarity[alike] / similarity[alike].sum()


def _means(vectors: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-empty clusters (c,), ascending, and their mean vectors (c, d) up to scale."""
    points = Lattice(vectors)
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    sums = np.stack([points.total(rows) for rows in np.split(order, starts[1:])])
    return cluster[order][starts], sums


class Information:
    """The information of chosen rows.

    Args:
        candidates: n rows.
        taken: positions already chosen.
        concavity: exponent; a cluster's information is its mass to this power.

    Attributes:
        mass: (k,) float64 quality received by each cluster.
    """

    def __init__(self, candidates: Candidates, taken: np.ndarray, concavity: float) -> None:
        self._cluster, self._quality = candidates.cluster, ranked_quality(candidates)
        self._spread, self._concavity = Spread(candidates), concavity
        self.mass = np.zeros(candidates.k)
        for position in taken:
            self._receive(int(position))
        self._ranked, self._next, self._stop = _by_quality(candidates, self._quality, open_positions(len(candidates), taken))

    def contenders(self) -> np.ndarray:
        """Positions of the best remaining row of each cluster that has any left."""
        return self._ranked[self._next[self._next < self._stop]]

    def gain(self, position: int) -> float:
        """Information the row adds."""
        at, given = self._gift(position)
        before = self.mass[at]
        more = np.power(before + given, self._concavity) - np.power(before, self._concavity)
        return float(np.rint(more.sum() * _GRID) / _GRID)

    def add(self, position: int) -> int | None:
        """Choose a contender; returns the next one of its cluster."""
        self._receive(position)
        cluster = self._cluster[position]
        self._next[cluster] += 1
        return int(self._ranked[self._next[cluster]]) if self._next[cluster] < self._stop[cluster] else None

    def _receive(self, position: int) -> None:
        at, given = self._gift(position)
        self.mass[at] += given

    def _gift(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        cluster = self._cluster[position]
        given = self._quality[position] * self._spread.shares[cluster]
        return self._spread.clusters[cluster], np.rint(given * _GRID) / _GRID


def _by_quality(candidates: Candidates, quality: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Free positions by cluster, then by falling quality, ties by position; where each cluster starts (k,) and stops (k,)."""
    ranked = free[np.lexsort((free, -quality[free], candidates.cluster[free]))]
    stop = np.cumsum(np.bincount(candidates.cluster[free], minlength=candidates.k))
    return ranked, np.concatenate([[0], stop[:-1]]), stop


def _choose(candidates: Candidates, taken: np.ndarray, count: int, config: SelectConfig, seed: int) -> Picks:
    information = Information(candidates, taken, config.concavity)
    contenders = information.contenders()
    bounds = np.array([information.gain(int(position)) for position in contenders])
    return lazy_greedy(information, contenders, bounds, count)


def memory(n: int, d: int, k: int, b: int, config: SelectConfig) -> int:
    """Bytes needed in addition to the vectors."""
    return lattices.memory(n, d) + 64 * n + 16 * k * d + graphs.memory(k, d, _NEIGHBOURS) + k * (16 * _NEIGHBOURS + 400)


SAMPLER = Greedy(
    "most information over a graph of clusters, with diminishing returns (MIG), O(n d + k^2 d + b) time",
    choose=_choose,
    memory=memory,
    needs=("quality", "vectors"),
)
