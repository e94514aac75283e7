"""The rivals of `bench_select.py`: common alternatives to the samplers that use vectors."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

NEIGHBOURS = 64
"""Number of neighbours, the default of the sampler."""
_ROWS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Rival:
    """A rival.

    Attributes:
        of: sampler that it is compared with.
        choose: function from (vectors (n, d) float32, count) to positions (count,) in the order of choice.
    """

    of: str
    choose: Callable[[np.ndarray, int], np.ndarray]


def choose_kcenter(vectors: np.ndarray, count: int) -> np.ndarray:
    """k-center greedy (Gonzalez 1985), the usual implementation with the distances of all rows to every new centre. O(n b d)."""
    chosen = np.empty(count, np.int64)
    chosen[0] = np.argmax(vectors @ vectors.mean(axis=0))
    nearest = vectors @ vectors[chosen[0]]
    for step in range(1, count):
        chosen[step] = np.argmin(nearest)
        np.maximum(nearest, vectors @ vectors[chosen[step]], out=nearest)
    return chosen


def neighbour_similarity(vectors: np.ndarray) -> sparse.csr_matrix:
    """Cosines of nearest neighbours from scikit-learn's brute-force search, as a symmetric matrix (n, n)."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(vectors)), metric="cosine", algorithm="brute").fit(vectors)
    distances, indices = search.kneighbors(vectors)
    starts = np.arange(len(vectors) + 1) * indices.shape[1]
    similarity = np.maximum(1.0 - distances, 0.0).ravel().astype(np.float64)
    listed = sparse.csr_matrix((similarity, indices.ravel(), starts), shape=(len(vectors), len(vectors)))
    both: sparse.csr_matrix = listed.maximum(listed.T).tocsr()
    return both


def choose_lazily(vectors: np.ndarray, count: int) -> np.ndarray:
    """Lazy greedy facility location (Minoux 1978), the usual implementation with a heap of stale gains over that graph."""
    graph = neighbour_similarity(vectors)
    cover = np.zeros(len(vectors))
    heap = [(-gain, position) for position, gain in enumerate(np.asarray(graph.sum(axis=1)).ravel())]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < count:
        _, position = heapq.heappop(heap)
        edges = slice(graph.indptr[position], graph.indptr[position + 1])
        rows, similarity = graph.indices[edges], graph.data[edges]
        gain = float(np.maximum(similarity - cover[rows], 0.0).sum())
        if heap and -gain > heap[0][0]:
            heapq.heappush(heap, (-gain, position))
            continue
        chosen.append(position)
        cover[rows] = np.maximum(cover[rows], similarity)
    return np.array(chosen, np.int64)


RIVALS = {
    "numpy_kcenter": Rival("kcenter", choose_kcenter),
    "sklearn_facility": Rival("facility", choose_lazily),
}


def spread(vectors: np.ndarray, chosen: np.ndarray) -> tuple[float, float]:
    """Quality of a choice: mean over all rows of the cosine to the nearest chosen row, and largest distance to it.

    Args:
        vectors: unit vectors (n, d).
        chosen: positions (b,) of the chosen rows.
    """
    chosen_vectors = vectors[chosen].astype(np.float32)
    nearest = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        nearest[part] = (vectors[part].astype(np.float32) @ chosen_vectors.T).max(axis=1)
    nearest = np.minimum(nearest, 1.0)
    return float(nearest.mean(dtype=np.float64)), float(np.sqrt(2.0 - 2.0 * nearest.min()))
