"""Pearson's r and Fisher's interval, by hand and against SciPy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from divsel_ray.tune.correlation import correlate, pearson


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
        assert pearson(pairs) is None
        return
    known = pearsonr(*zip(*pairs, strict=True))
    found = correlate("a", "b", pairs)
    assert found.r == pytest.approx(known.statistic, abs=1e-9)
    if found.low is not None and abs(found.r) < 0.999999:
        interval = known.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_too_few_or_equal_figures_have_no_r():
    assert correlate("a", "b", [(1, 2), (2, 3)]).r is None
    assert correlate("a", "b", [(1, 2), (1, 3), (1, 5)]).r is None


def test_three_points_and_a_straight_line_have_no_interval():
    assert correlate("a", "b", [(1, 2), (2, 3), (3, 5)]).low is None
    line = correlate("a", "b", [(n, 2 * n) for n in range(6)])
    assert (line.r, line.low, line.high) == (pytest.approx(1), None, None)
