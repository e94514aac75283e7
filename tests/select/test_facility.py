"""Facility location: lazy greedy is greedy, and near the best there is."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.select.facility import SAMPLER
from divsel_ray.select.graph import neighbour_graph
from divsel_ray.select.sampler import Candidates
from tests.select.pools import NONE, check_contract, odd_pools, pool, random_pool, same_whatever_the_threads, unit


def dense(candidates: Candidates, neighbours: int) -> np.ndarray:
    """The symmetric similarities as a matrix."""
    graph = neighbour_graph(candidates.vectors, candidates.cluster, neighbours)
    matrix = np.zeros((len(candidates), len(candidates)))
    np.put_along_axis(matrix, graph.indices.astype(int), graph.similarity.astype(float), axis=1)
    return np.maximum(matrix, matrix.T)


def naive(similarity: np.ndarray, taken: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """Plain greedy; ties to the lowest position."""
    cover = similarity[taken].max(axis=0, initial=0.0)
    free, index, gain = sorted(set(range(len(similarity))) - set(taken.tolist())), [], []
    for _ in range(count):
        gains = [np.maximum(similarity[row] - cover, 0).sum() for row in free]
        best = int(np.argmax(gains))
        index.append(free.pop(best))
        gain.append(gains[best])
        cover = np.maximum(cover, similarity[index[-1]])
    return index, gain


@settings(max_examples=60, deadline=None)
@given(odd_pools(), st.integers(1, 25), st.data())
def test_contract(candidates, neighbours, data):
    picks = check_contract(SAMPLER, candidates, SelectConfig(neighbours=neighbours), data)
    assert (np.diff(picks.gain) <= 0).all()


@settings(max_examples=60, deadline=None)
@given(odd_pools(), st.integers(1, 25), st.data())
def test_lazy_greedy_is_greedy(candidates, neighbours, data):
    taken = np.array(data.draw(st.lists(st.integers(0, max(0, len(candidates) - 1)), unique=True)), np.int64)[: len(candidates)]
    count = data.draw(st.integers(0, len(candidates) - len(taken)))
    picks = SAMPLER.choose(candidates, taken, count, SelectConfig(neighbours=neighbours), 0)
    if count:
        assert (picks.index.tolist(), picks.gain.tolist()) == naive(dense(candidates, neighbours), taken, count)


def test_lazy_greedy_is_greedy_on_many_rows():
    candidates = random_pool(300)
    picks = SAMPLER.choose(candidates, np.array([3, 77]), 60, SelectConfig(neighbours=12), 0)
    assert (picks.index.tolist(), picks.gain.tolist()) == naive(dense(candidates, 12), np.array([3, 77]), 60)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10_000), st.data())
def test_greedy_reaches_the_guaranteed_share_of_the_best(n, seed, data):
    candidates = random_pool(n, d=3, k=3, seed=seed)
    count = data.draw(st.integers(1, n))
    similarity = dense(candidates, n)
    best = max(similarity[list(rows)].max(axis=0).sum() for rows in itertools.combinations(range(n), count))
    picks = SAMPLER.choose(candidates, NONE, count, SelectConfig(neighbours=n), 0)
    assert similarity[picks.index].max(axis=0).sum() >= (1 - 1 / math.e) * best
    assert picks.gain.sum() == similarity[picks.index].max(axis=0).sum()


def test_the_middle_of_the_largest_group_comes_first():
    # Three rows around a middle one, and one apart: the middle one represents most, then the one apart adds a whole row.
    candidates = pool(unit([[4, 1, 1], [4, 1, -1], [4, -2, 0], [4, 0, 0], [-4, 0, 1]]))
    picks = SAMPLER.choose(candidates, NONE, 2, SelectConfig(neighbours=5), 0)
    assert picks.index.tolist() == [3, 4]
    assert picks.gain == pytest.approx([1 + 2 * 4 / np.sqrt(18) + 4 / np.sqrt(20), 1], abs=1e-3)


def test_equal_rows_add_nothing_and_follow_by_row_id():
    picks = SAMPLER.choose(pool(unit([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]])), NONE, 5, SelectConfig(), 0)
    assert picks.index.tolist() == [0, 1, 2, 3, 4]
    assert picks.gain.tolist() == [3, 2, 0, 0, 0]


def test_the_threads_do_not_matter():
    assert same_whatever_the_threads(SAMPLER, random_pool(400, d=96), 80, SelectConfig(neighbours=20))
