"""Pearson's r and Fisher's interval, by hand and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from divsel_ray.tune.correlation import correlate


def test_r_of_five_points_worked_by_hand():
    # Deviations (-2 -1 0 1 2) and (-1.2 -0.2 -1.2 0.8 1.8): products 7, squares 10 and 6.8.
    pairs = [(1, 1), (2, 2), (3, 1), (4, 3), (5, 4)]
    expected = 7 / math.sqrt(10 * 6.8)
    found = correlate("a", "b", pairs)
    assert found.r == pytest.approx(expected)
    reach = 1.959964 / math.sqrt(2)
    assert found.low == pytest.approx(math.tanh(math.atanh(expected) - reach), abs=1e-6)
    assert found.high == pytest.approx(math.tanh(math.atanh(expected) + reach), abs=1e-6)
    assert found.trials == 5


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=4, max_size=30))
def test_r_and_interval_are_scipys(pairs):
    if len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        assert correlate("a", "b", pairs).r is None
        return
    known = pearsonr(*zip(*pairs, strict=True))
    found = correlate("a", "b", pairs)
    assert found.r == pytest.approx(known.statistic, abs=1e-9)
    if found.low is not None and abs(found.r) < 0.999999:
        interval = known.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_trials_of_one_point_each_are_compared_within_their_group():
    # Deviations within the groups (-1 0 1 | -1 0 1) and (-1 1 0 | -2 0 2): products 1 + 4, squares 4 and 10. The groups' means
    # go the other way, and all six together give r < 0.
    pairs = [(1, 11), (2, 13), (3, 12), (11, 1), (12, 3), (13, 5)]
    found = correlate("a", "b", pairs, groups=[0, 0, 0, 7, 7, 7])
    assert (found.trials, found.points, found.groups, found.r) == (6, 6, 2, pytest.approx(5 / math.sqrt(4 * 10)))
    assert found.high == pytest.approx(math.tanh(math.atanh(found.r) + 1.959964 / math.sqrt(5 - 3)), abs=1e-6)
    assert correlate("a", "b", pairs).r < -0.8


def test_repeated_points_count_once_however_many_seeds_they_have():
    # Less the groups' means, then over both groups: (-1 0 1) and (-0.5 0 0.5) + (-0.5 0.5 0) halved.
    one = [(1, 11), (2, 11.5), (3, 12)]
    other = [(11, 1), (12, 2), (13, 1.5)]
    found = correlate("a", "b", one + other, [2, 4, 8, 2, 4, 8], [0, 0, 0, 1, 1, 1])
    assert (found.trials, found.points, found.groups) == (6, 3, 2)
    assert found.r == pytest.approx(0.75 / math.sqrt(2 * (0.25 + 0.0625 + 0.0625)))
    assert found.low is None


def test_more_seeds_of_points_that_are_unrelated_do_not_make_an_interval_that_excludes_zero():
    numbers, misses = np.random.default_rng(0), 0
    points, groups = list(range(5)) * 3, np.repeat(range(3), 5).tolist()
    for _ in range(400):
        effects = numbers.normal(size=(5, 2))
        figures = effects[points] + numbers.normal(size=(3, 2))[groups] + numbers.normal(size=(15, 2)) * (0.1, 0.3)
        found = correlate("a", "b", list(map(tuple, figures)), points, groups)
        misses += found.low > 0 or found.high < 0
    # 5 % are expected; one pair for each trial would give 30 %.
    assert 0.02 < misses / 400 < 0.09


def test_groups_of_one_trial_each_or_of_equal_figures_have_no_r():
    pairs = [(1, 2), (2, 3), (3, 5), (4, 4)]
    assert correlate("a", "b", pairs, groups=range(4)).r is None
    assert correlate("a", "b", [(0.1, 2), (0.1, 3), (0.1, 5), (0.7, 4), (0.7, 1), (0.7, 3)], groups=[0, 0, 0, 1, 1, 1]).r is None


def test_too_few_or_equal_figures_have_no_r():
    assert correlate("a", "b", [(1, 2), (2, 3)]).r is None
    assert correlate("a", "b", [(1, 2), (1, 3), (1, 5)]).r is None


def test_three_points_and_a_straight_line_have_no_interval():
    assert correlate("a", "b", [(1, 2), (2, 3), (3, 5)]).low is None
    line = correlate("a", "b", [(n, 2 * n) for n in range(6)])
    assert (line.r, line.low, line.high) == (pytest.approx(1), None, None)
