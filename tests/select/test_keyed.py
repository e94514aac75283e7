"""Taking the smallest keys of every group, without sorting the pool."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.select.keyed import Groups
from divsel_ray.select.sampler import Keys


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_smallest_keys_are_those_that_a_full_sort_finds(data):
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    group = np.array(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    # Few distinct keys: ties, which go to the earlier position.
    keys = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), float)
    sizes = np.bincount(group, minlength=k)
    counts = np.array([data.draw(st.integers(0, size)) for size in sizes])
    expected = [row for j in range(k) for row in sorted(np.flatnonzero(group == j), key=lambda i: (keys[i], i))[: counts[j]]]
    groups = Groups(Keys(keys), group, k)
    assert groups.smallest(counts).tolist() == sorted(expected)
    assert [groups.ranked(j)[: counts[j]].tolist() for j in range(k)] == [
        sorted(np.flatnonzero(group == j), key=lambda i: (keys[i], i))[: counts[j]] for j in range(k)
    ]


def test_no_count_takes_no_row():
    assert Groups(Keys(np.zeros(3)), np.zeros(3, int), 2).smallest(np.zeros(2, int)).tolist() == []


def test_an_order_without_chance_has_probability_one():
    groups = Groups(Keys(np.arange(4.0)), np.zeros(4, int), 1)
    assert groups.inverse_probability(np.array([0, 1]), np.array([2]), fixed=True).tolist() == [1.0, 1.0]


def test_the_probability_is_that_of_a_key_below_the_first_one_left_out():
    log_rates = np.log([1.0, 2.0, 1.0])
    groups = Groups(Keys(np.log([0.1, 0.2, 0.5]), log_rates), np.zeros(3, int), 1)
    found = groups.inverse_probability(np.array([0, 1]), np.array([2]), fixed=True)
    assert np.allclose(found, 1 / (1 - np.exp(-np.array([1.0, 2.0]) * 0.5)))


def test_the_probability_of_a_single_row_is_its_share_of_the_rates():
    groups = Groups(Keys(np.log([0.1, 0.2, 0.5]), np.log([1.0, 2.0, 5.0])), np.zeros(3, int), 1)
    assert groups.inverse_probability(np.array([0]), np.array([1]), fixed=True).tolist() == pytest.approx([8.0])


def test_rows_of_equal_rates_are_drawn_with_the_probability_of_their_count():
    groups = Groups(Keys(np.log([0.1, 0.2, 0.5, 3.0]), np.full(4, 0.7)), np.array([0, 0, 0, 1]), 2)
    assert groups.inverse_probability(np.array([0, 1, 3]), np.array([2, 1]), fixed=True).tolist() == pytest.approx([1.5, 1.5, 1])


def test_counts_that_follow_from_the_draw_are_not_taken_for_known():
    groups = Groups(Keys(np.log([0.1, 0.2, 0.5]), np.zeros(3)), np.zeros(3, int), 1)
    found = groups.inverse_probability(np.array([0, 1]), np.array([2]), fixed=False)
    assert np.allclose(found, 1 / (1 - np.exp(-0.5)))
