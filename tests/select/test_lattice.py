"""The lattice: products without rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.select.lattice import LENGTH, Lattice, blocks, memory, product
from tests.select.pools import unit


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 300), st.integers(0, 1000))
def test_products_are_exact_integers(n, d, seed):
    points = Lattice(unit(np.random.default_rng(seed).normal(size=(n, d))))
    exact = points.values.astype(np.int64) @ points.values.astype(np.int64).T
    np.testing.assert_array_equal(product(points.rows(slice(None)), points.rows(slice(None))), exact)
    np.testing.assert_array_equal(points.squared, np.diag(exact))


@pytest.mark.parametrize("vectors", [np.eye(3), np.full((2, 5000), 1 / np.sqrt(5000)), [[1.0, 0.0], [0.6, -0.8]]])
def test_no_vector_is_longer_than_float32_counts(vectors):
    assert Lattice(np.asarray(vectors)).squared.max() <= LENGTH**2


def test_cosines_are_kept_to_three_digits():
    vectors = unit(np.random.default_rng(0).normal(size=(100, 384)))
    points = Lattice(vectors)
    cosines = product(points.rows(slice(None)), points.rows(slice(None))) / points.unit**2
    assert np.abs(cosines - vectors @ vectors.T).max() < 1e-3


def test_length_does_not_matter_and_zero_stays():
    points = Lattice(np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))
    assert points.values[0].tolist() == points.values[1].tolist() == [2457, 3276]  # 0.6 and 0.8 of 4096 - sqrt(2) / 2
    assert points.values[2].tolist() == [0, 0]


def test_total_and_project():
    points = Lattice(np.eye(2))
    assert points.total(np.array([0, 0, 1])).tolist() == [8190, 4095]
    assert points.project(np.array([1, 0]), np.array([1.0, 2.0])).tolist() == [8190, 4095]


def test_blocks_cover_everything_once():
    assert [(part.start, part.stop) for part in blocks(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert list(blocks(0, 3)) == []
    assert memory(10, 4) > 80
