"""Allocation: exact totals, caps respected, nothing lost to rounding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.select.allocation import allocate, allocate_round, allocation_weights, round_sizes


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_each_round_adds_b_over_n_rows_and_the_total_is_b(budget, rounds):
    sizes = round_sizes(budget, rounds)
    assert sum(sizes) == budget
    assert all(abs(size - budget / rounds) <= 1 for size in sizes)


def test_proportional_targets_round_by_largest_remainder():
    # Shares 3.5, 2.1, 1.4: floors 3, 2, 1 leave one row, which goes to the largest fraction.
    counts = allocate(np.array([50.0, 30.0, 20.0]), np.array([50, 30, 20]), total=7)
    assert counts.tolist() == [4, 2, 1]


def test_what_a_small_cluster_cannot_hold_is_spread_over_the_others():
    counts = allocate(np.array([10.0, 10.0, 10.0]), np.array([2, 100, 100]), total=30)
    assert counts.tolist() == [2, 14, 14]


def test_clusters_without_a_target_serve_only_when_the_others_are_empty():
    counts = allocate(np.array([1.0, 0.0]), np.array([3, 10]), total=5)
    assert counts.tolist() == [3, 2]


def test_more_rows_than_the_clusters_hold_are_refused():
    with pytest.raises(ValueError, match="hold 5"):
        allocate(np.array([1.0, 1.0]), np.array([2, 3]), total=6)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 200)), min_size=1, max_size=40), st.floats(0, 1))
def test_any_allocation_is_exact_and_within_capacity(clusters, share):
    targets, capacity = np.array([c[0] for c in clusters]), np.array([c[1] for c in clusters])
    total = int(share * capacity.sum())
    counts = allocate(targets, capacity, total)
    assert counts.sum() == total
    assert (counts >= 0).all()
    assert (counts <= capacity).all()


def test_cumulative_rounding_serves_a_small_cluster_in_the_second_round():
    # Weights 0.9 / 0.1, 4 rows a round: 0.4 rows a round would round to none, for ever.
    weights, sizes = np.array([0.9, 0.1]), np.array([100, 100])
    drawn, targets = np.zeros(2, dtype=int), np.zeros(2)
    history = []
    for _ in range(3):
        targets = targets + 4 * weights
        drawn = drawn + allocate_round(targets, drawn, sizes, 4)
        history.append(drawn.tolist())
    assert history == [[4, 0], [7, 1], [11, 1]]


def test_rules_share_the_budget_by_size_equally_or_by_root():
    sizes = np.array([16, 4, 0])
    assert allocation_weights(sizes, "proportional").tolist() == [0.8, 0.2, 0.0]
    assert allocation_weights(sizes, "equal").tolist() == [0.5, 0.5, 0.0]
    assert allocation_weights(sizes, "sqrt") == pytest.approx([4 / 6, 2 / 6, 0.0])
