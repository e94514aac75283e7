"""Intervals of means over seeds and rows, by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from divsel_ray.arena.bootstrap import Interval, interval, paired, resampled_means, stretch


@pytest.fixture
def plain(monkeypatch):
    """Resamples as they are, not stretched for few."""
    monkeypatch.setattr("divsel_ray.arena.bootstrap.stretch", lambda count: 1.0)


def test_of_contenders_that_are_alike_one_in_twenty_is_told_apart_however_few_the_seeds():
    numbers = np.random.default_rng(0)
    for seeds in (3, 5):
        tables = [numbers.normal(size=(seeds, 1)) + 0.1 * numbers.normal(size=(seeds, 20)) for _ in range(400)]
        apart = sum(interval(table, draws=400, seed=0).excludes_zero for table in tables)
        assert 0.02 < apart / 400 < 0.1


def test_many_are_not_stretched():
    assert stretch(1) == 1
    # The 97.5th percentiles of t with 2 degrees of freedom and of the normal distribution are 4.3027 and 1.9600.
    assert stretch(3) == pytest.approx(1.5**0.5 * 4.3027 / 1.96, rel=1e-4)
    assert stretch(300) == pytest.approx(1, abs=0.01)


@pytest.mark.usefixtures("plain")
def test_two_seeds_of_one_row_are_resampled_to_all_four_pairs_alike():
    means = resampled_means(np.array([[0.0], [1.0]]), draws=20_000, seed=0)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


@pytest.mark.usefixtures("plain")
def test_seeds_and_rows_are_resampled_independently_of_each_other():
    # One seed in two and one row in two: the mean is 1 where both fall on the entry that is 4 on average.
    means = resampled_means(np.array([[4.0, 0.0], [0.0, 0.0]]), draws=20_000, seed=1)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 1, 2, 4]
    # P(no share) = 1/4 + 3/4 * 1/4, P(1) = 1/2 * 1/2, P(2) = 2 * 1/2 * 1/4, P(4) = 1/4 * 1/4.
    assert counts / 20_000 == pytest.approx([7 / 16, 1 / 4, 1 / 4, 1 / 16], abs=0.02)


def test_a_table_of_one_value_has_an_interval_of_no_width():
    found = interval(np.full((3, 5), 2.5), draws=100, seed=0)
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 2.5, 2.5))


def test_an_interval_of_shares_ends_at_nothing_and_at_all():
    assert Interval(0.1, -0.05, 0.3).within(0, 1) == Interval(0.1, 0, 0.3)
    assert Interval(0.9, 0.7, 1.2).within(0, 1) == Interval(0.9, 0.7, 1)


def test_resampling_rows_alone_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=(1, 200))
    found = interval(values, draws=20_000, seed=0)
    expected = stats.bootstrap((values[0],), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


@pytest.mark.usefixtures("plain")
def test_resampling_seeds_alone_agrees_with_scipy():
    values = np.random.default_rng(1).normal(size=(12, 1))
    found = interval(values, draws=20_000, seed=0)
    expected = stats.bootstrap((values[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_a_paired_difference_loses_what_rows_and_seeds_have_in_common():
    numbers = np.random.default_rng(2)
    common = 10 * numbers.normal(size=(1, 40)) + 5 * numbers.normal(size=(4, 1))
    found = paired(common - 0.25, common, draws=500, seed=0)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.25, -0.25, -0.25))
    assert found.excludes_zero
    assert interval(common, draws=500, seed=0).high - interval(common, draws=500, seed=0).low > 1


def test_a_model_without_seeds_meets_every_seed_of_the_other():
    found = paired(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0], [2.0, 2.0]]), draws=100, seed=0)
    assert found.mean == pytest.approx(0.5)


def test_many_rows_are_resampled_in_parts_to_the_same_spread(monkeypatch):
    values = np.random.default_rng(3).normal(size=(3, 50))
    whole = np.std(resampled_means(values, 4000, seed=0))
    monkeypatch.setattr("divsel_ray.arena.bootstrap._CHUNK", 5000)
    parts = resampled_means(values, 4000, seed=0)
    assert len(parts) == 4000
    assert np.std(parts) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.array([[1.0, np.nan]]), np.zeros(3)])
def test_what_is_no_table_of_numbers_is_refused(values):
    with pytest.raises(ValueError, match="table of finite numbers"):
        interval(values, draws=100, seed=0)
