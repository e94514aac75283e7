"""The neighbour graph: the nearest rows, exactly or in parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.select.graph import Reach, _parts, memory, neighbour_graph
from divsel_ray.select.lattice import Lattice
from tests.select.pools import odd_pools, random_pool, unit


def reference(vectors: np.ndarray, m: int) -> list[list[int]]:
    """Each row itself and the m - 1 others with the largest integer products, ties to the lower position."""
    values = Lattice(vectors).values.astype(np.int64)
    products = values @ values.T
    np.fill_diagonal(products, products.max() + 1)
    return [sorted(np.lexsort((np.arange(len(row)), -row))[:m].tolist()) for row in products]


@settings(max_examples=60, deadline=None)
@given(odd_pools(), st.integers(1, 25))
def test_the_exact_graph_lists_the_nearest_rows(candidates, neighbours):
    if not len(candidates):
        return
    graph = neighbour_graph(candidates.vectors, candidates.cluster, neighbours)
    assert graph.indices.tolist() == reference(candidates.vectors, min(neighbours, len(candidates)))
    assert graph.similarity.min() >= 0
    assert graph.similarity.max() <= 1


def test_similarities_are_cosines_clipped_at_zero():
    graph = neighbour_graph(unit([[1, 0], [3, 4], [-1, 0]]), np.zeros(3, int), 3)
    assert graph.indices.tolist() == [[0, 1, 2]] * 3
    assert graph.similarity == pytest.approx(np.array([[1, 0.6, 0], [0.6, 1, 0], [0, 0, 1]]), abs=3e-4)
    assert (graph.similarity * 2**16 == np.rint(graph.similarity * 2**16)).all()


def test_equal_rows_are_neighbours_in_the_order_of_position_and_a_row_is_always_its_own():
    graph = neighbour_graph(unit(np.ones((5, 3))), np.zeros(5, int), 2)
    assert graph.indices.tolist() == [[0, 1], [0, 1], [0, 2], [0, 3], [0, 4]]
    assert (graph.similarity == 1).all()


@settings(max_examples=40, deadline=None)
@given(odd_pools(), st.integers(1, 6), st.integers(1, 8), st.integers(1, 30))
def test_a_graph_in_parts_is_well_formed_on_anything(candidates, neighbours, part, searched):
    if not len(candidates):
        return
    n, m = len(candidates), min(neighbours, len(candidates))
    graph = neighbour_graph(candidates.vectors, candidates.cluster, neighbours, Reach(0, part, searched))
    assert graph.indices.shape == graph.similarity.shape == (n, m)
    assert (np.diff(graph.indices, axis=1) > 0).all()
    assert all(row in graph.indices[row] for row in range(n))


@settings(max_examples=40, deadline=None)
@given(odd_pools(), st.integers(1, 8))
def test_parts_hold_every_row_once_and_are_bounded(candidates, largest):
    if not len(candidates):
        return
    parts = _parts(Lattice(candidates.vectors), candidates.cluster, largest)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(candidates)))
    assert max(map(len, parts)) <= largest
    assert all((np.diff(part) > 0).all() for part in parts)


def test_searching_everything_in_parts_is_exact():
    candidates = random_pool(300)
    exact = neighbour_graph(candidates.vectors, candidates.cluster, 10)
    parts = neighbour_graph(candidates.vectors, candidates.cluster, 10, Reach(0, 40, 300))
    np.testing.assert_array_equal(parts.indices, exact.indices)
    np.testing.assert_array_equal(parts.similarity, exact.similarity)


@pytest.mark.parametrize("clusters", [1, 4, 400])
def test_parts_find_most_neighbours_whatever_the_clusters(clusters):
    candidates = random_pool(800, d=6, k=4)
    cluster = candidates.cluster if clusters == 4 else np.arange(800) % clusters
    exact = neighbour_graph(candidates.vectors, candidates.cluster, 8)
    parts = neighbour_graph(candidates.vectors, cluster, 8, Reach(0, 50, 400))
    found = np.mean([len(np.intersect1d(*pair)) / 8 for pair in zip(exact.indices, parts.indices, strict=True)])
    assert found > (0.8 if clusters < 400 else 0.5)


def test_memory_of_a_large_graph_does_not_grow_with_pairs():
    assert memory(2_000_000, 384, 64) < 2.5 * memory(1_000_000, 384, 64)
