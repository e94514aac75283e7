"""Allocation: exact totals, caps respected, nothing lost to rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.errors import InputError
from divsel_ray.select.allocation import (
    allocate,
    allocate_round,
    allocate_tokens,
    allocation_weights,
    round_sizes,
    split_budgets,
)


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
    # In proportion: 48 over 10 and 30.
    assert allocate(np.array([10.0, 10.0, 30.0]), np.array([2, 100, 100]), total=50).tolist() == [2, 12, 36]


def test_clusters_without_a_target_serve_only_when_the_others_are_empty():
    counts = allocate(np.array([1.0, 0.0]), np.array([3, 10]), total=5)
    assert counts.tolist() == [3, 2]
    # Then by what they hold: 8 over 10 and 30.
    assert allocate(np.array([1.0, 0.0, 0.0]), np.array([3, 10, 30]), total=11).tolist() == [3, 2, 6]


def test_more_rows_than_the_clusters_hold_are_refused():
    with pytest.raises(ValueError, match="contain 5"):
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


def test_a_cluster_gives_no_more_in_a_later_round_than_it_has_left():
    assert allocate_round(np.array([9.0, 1.0]), np.array([4, 0]), np.array([5, 10]), 4).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("budgets", "finals", "expected"),
    [
        ([10, 100], [25, 25, 25, 25, 0], [[3, 3, 2, 2, 0], [25, 25, 25, 25, 0]]),
        ([10, 100], [33, 33, 34, 0], [[3, 3, 4, 0], [33, 33, 34, 0]]),
        ([10, 99], [33, 33, 33, 0], [[4, 3, 3, 0], [33, 33, 33, 0]]),
        ([50, 100], [31, 31, 37, 1], [[16, 16, 18, 0], [31, 31, 37, 1]]),
        # More than the parts have is what they have.
        ([4, 60, 100], [10, 30], [[1, 3], [10, 30], [10, 30]]),
        ([4, 8], [0, 0], [[0, 0], [0, 0]]),
    ],
)
def test_a_nested_budget_is_split_like_the_last_one(budgets, finals, expected):
    assert split_budgets(budgets, np.array(finals)).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.lists(st.integers(0, 1000), max_size=8))
def test_parts_of_nested_budgets_add_up_and_never_shrink_or_exceed_what_they_give_in_the_end(finals, permille):
    final = np.array(finals)
    budgets = np.array([*sorted(final.sum() * share // 1000 for share in permille), final.sum()])
    counts = split_budgets(budgets.tolist(), final)
    assert (counts.sum(axis=1) == budgets).all()
    assert (np.diff(counts, axis=0, prepend=0) >= 0).all()
    assert counts[-1].tolist() == finals
    assert (np.abs(counts - np.outer(budgets, final) / max(1, final.sum())) < 1).all()


def shares(rule, sizes, **settings):
    return allocation_weights(np.array(sizes), SelectConfig(allocation=rule, **settings))


def test_rules_share_the_budget_by_size_equally_by_root_or_between():
    sizes = [16, 4, 0]
    assert shares("proportional", sizes).tolist() == [0.8, 0.2, 0.0]
    assert shares("proportional", [3, 1]).tolist() == [0.75, 0.25]
    assert shares("equal", sizes).tolist() == [0.5, 0.5, 0.0]
    assert shares("sqrt", sizes) == pytest.approx([4 / 6, 2 / 6, 0.0])
    assert shares("tempered", sizes, exponent=0.5) == pytest.approx([4 / 6, 2 / 6, 0.0])
    assert shares("tempered", sizes, exponent=0.25) == pytest.approx([2 / (2 + 2**0.5), 2**0.5 / (2 + 2**0.5), 0.0])


def test_given_weights_count_where_there_are_rows():
    assert shares("given", [5, 5, 0], weights=[1.0, 3.0, 4.0]).tolist() == [0.25, 0.75, 0.0]
    with pytest.raises(InputError, match="2 weights for 3 clusters"):
        shares("given", [5, 5, 0], weights=[1.0, 3.0])
    with pytest.raises(InputError, match="zero for every cluster that has rows"):
        shares("given", [5, 0], weights=[0.0, 1.0])


def test_water_filling_levels_the_counts():
    sizes = np.array([2, 30, 9, 50])
    counts = allocate(shares("water_fill", sizes), sizes, total=41)
    # The level is 15: min(2, 15) + 15 + min(9, 15) + 15.
    assert counts.tolist() == [2, 15, 9, 15]


def test_min_one_gives_every_cluster_a_row_before_the_targets_are_served():
    targets, sizes, none = np.array([9.9, 0.05, 0.05, 0.0]), np.array([50, 5, 5, 0]), np.zeros(4, int)
    assert allocate_round(targets, none, sizes, 10).tolist() == [10, 0, 0, 0]
    assert allocate_round(targets, none, sizes, 10, min_one=True).tolist() == [8, 1, 1, 0]
    # Too few for all: the largest targets first.
    assert allocate_round(targets, none, sizes, 2, min_one=True).tolist() == [1, 1, 0, 0]
    # Those that have one already need none.
    assert allocate_round(np.add(targets, [0, 1, 0, 0]), np.array([8, 1, 0, 0]), sizes, 2, min_one=True).tolist() == [1, 0, 1, 0]


def test_tokens_go_to_shares_and_then_to_whoever_is_furthest_below():
    lengths = [np.array([4, 4, 4]), np.array([5, 5])]
    # Shares 8 and 8 of 16: two rows of 4; one of 5; 3 tokens are left, and no next row fits.
    assert allocate_tokens(np.array([1.0, 1.0]), lengths, np.zeros(2, int), 16).tolist() == [2, 1]
    # 18: shares 9 and 9, two rows and one; 5 are left: the second is furthest below and its next row fits.
    assert allocate_tokens(np.array([1.0, 1.0]), lengths, np.zeros(2, int), 18).tolist() == [2, 2]


def test_the_group_furthest_below_its_share_of_tokens_gives_the_next_row():
    none = np.zeros(2, int)
    # Shares 12 and 6 of 18: 10 and 5 fit, and 3 are left.
    assert allocate_tokens(np.array([2.0, 1.0]), [np.array([5, 5, 3]), np.array([5, 3])], none, 18).tolist() == [3, 1]
    # The third group's row fits nowhere: its 18 of 36 tokens go to the others, three at a time and in turn.
    lengths = [np.array([5, 5, *[3] * 20]), np.array([5, *[3] * 20]), np.array([30])]
    assert allocate_tokens(np.array([2.0, 1.0, 3.0]), lengths, np.zeros(3, int), 36).tolist() == [6, 4, 0]


def test_what_a_smaller_budget_of_tokens_took_beyond_its_share_the_others_make_room_for():
    targets, lengths = np.array([9.0, 7.0]), [np.array([9]), np.ones(20, int)]
    # Of 9 tokens the row of 9 has a share of 5 and does not fit; the single tokens take all.
    small = allocate_tokens(targets, lengths, np.zeros(2, int), 9)
    assert small.tolist() == [0, 9]
    # Of 16 it would have its 9, but the others hold 9 of their 7 already.
    assert allocate_tokens(targets, lengths, small, 16).tolist() == [0, 16]
    assert allocate_tokens(targets, lengths, small, 18).tolist() == [1, 9]


@given(st.data())
def test_any_budget_of_tokens_is_kept_and_grows_with_the_budget(data):
    groups = data.draw(st.lists(st.lists(st.integers(1, 30), max_size=8), min_size=1, max_size=5))
    lengths = [np.array(group, int) for group in groups]
    targets = np.array([data.draw(st.floats(0.01, 5)) for _ in groups])
    total = sum(int(length.sum()) for length in lengths)
    small = data.draw(st.integers(0, total))
    large = data.draw(st.integers(small, total))
    first = allocate_tokens(targets, lengths, np.zeros(len(groups), int), small)
    second = allocate_tokens(targets, lengths, first, large)
    assert (second >= first).all()
    for counts, budget in ((first, small), (second, large)):
        spent = sum(int(length[:count].sum()) for length, count in zip(lengths, counts, strict=True))
        assert spent <= budget
        following = [length[count] for length, count in zip(lengths, counts, strict=True) if count < len(length)]
        assert all(spent + size > budget for size in following)
