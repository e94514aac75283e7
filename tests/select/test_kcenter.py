"""k-center greedy: the farthest row, exactly, however few rows are looked at."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.select.kcenter import SAMPLER, Traversal, nearest_to_mean
from divsel_ray.select.lattice import Lattice
from tests.select.pools import NONE, check_contract, odd_pools, pool, random_pool, same_whatever_the_threads, unit

CONFIG = SelectConfig()


def squared_distances(vectors: np.ndarray) -> np.ndarray:
    """All squared distances on the lattice, as integers."""
    values = Lattice(vectors).values.astype(np.int64)
    return np.square(values[:, None] - values[None]).sum(axis=2)


def naive(vectors: np.ndarray, centres: list[int], count: int) -> list[int]:
    """Farthest first from these centres on, every distance worked out at every step."""
    distances, centres = squared_distances(vectors), list(centres)
    start = len(centres)
    for _ in range(count):
        nearest = distances[:, centres].min(axis=1)
        nearest[centres] = -1
        centres.append(int(nearest.argmax()))
    return centres[start:]


@settings(max_examples=60, deadline=None)
@given(odd_pools(), st.data())
def test_contract(candidates, data):
    picks = check_contract(SAMPLER, candidates, CONFIG, data)
    known = picks.gain[np.isfinite(picks.gain)]
    assert (np.diff(known) <= 0).all()


@settings(max_examples=80, deadline=None)
@given(odd_pools(largest=40), st.integers(1, 9), st.data())
def test_a_window_of_any_size_finds_the_farthest_row(candidates, window, data):
    n = len(candidates)
    if n < 2:
        return
    taken = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=n - 1))
    traversal, found = Traversal(Lattice(candidates.vectors), window), []
    for position in taken:
        traversal.add(position)
    for _ in range(n - len(taken)):
        found.append(traversal.farthest())
        traversal.add(found[-1])
    assert found == naive(candidates.vectors, taken, len(found))


def test_a_small_window_finds_the_farthest_rows_of_many():
    points = random_pool(600, d=16, k=9)
    traversal, found = Traversal(Lattice(points.vectors), 16), []
    traversal.add(5)
    for _ in range(200):
        found.append(traversal.farthest())
        traversal.add(found[-1])
    assert found == naive(points.vectors, [5], 200)
    assert (traversal.met < len(traversal.centres)).any()


def test_the_sampler_is_the_naive_one_from_the_row_nearest_to_the_mean():
    points = random_pool(300)
    mean = points.vectors.astype(float).mean(axis=0)
    nearest = int(np.square(points.vectors - mean).sum(axis=1).argmin())
    assert nearest_to_mean(Lattice(points.vectors)) == nearest
    picks = SAMPLER.choose(points, NONE, 100, CONFIG, 0)
    assert picks.index.tolist() == [nearest, *naive(points.vectors, [nearest], 99)]


def test_distances_by_hand():
    # The mean lies towards the first row; the opposite row is 2 away, then a right angle is sqrt(2).
    picks = SAMPLER.choose(pool(unit([[1, 0], [0, 1], [-1, 0], [1, 0], [1, 0]])), NONE, 5, CONFIG, 0)
    assert picks.index.tolist() == [0, 2, 1, 3, 4]
    assert np.isnan(picks.gain[0])
    assert picks.gain[1:] == pytest.approx([2, np.sqrt(2), 0, 0], abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10_000), st.data())
def test_the_radius_is_at_most_twice_the_smallest(n, seed, data):
    points = random_pool(n, d=3, k=3, seed=seed)
    count = data.draw(st.integers(1, n))
    distances = np.sqrt(squared_distances(points.vectors))
    picks = SAMPLER.choose(points, NONE, count, CONFIG, 0)
    smallest = min(distances[list(rows)].min(axis=0).max() for rows in itertools.combinations(range(n), count))
    assert distances[picks.index].min(axis=0).max() <= 2 * smallest + 1e-9


def test_the_threads_do_not_matter():
    assert same_whatever_the_threads(SAMPLER, random_pool(400, d=96), 80, CONFIG)
