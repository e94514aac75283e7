"""Gaps by cluster: means, noise, shrinkage, length; by hand and by property."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from divsel_ray.select.gaps import cluster_gaps, remove_length, shuffled_clusters


def test_gaps_are_means_in_units_of_the_pooled_standard_deviation():
    # Cluster 0: 1, 3 (mean 2); cluster 1: 7, 9 (mean 8); within variance (1+1+1+1) / (4-2) = 2.
    gaps = cluster_gaps(np.array([1.0, 3.0, 7.0, 9.0]), np.array([0, 0, 1, 1]), k=3, shrinkage=False)
    assert gaps.unit == pytest.approx(np.sqrt(2))
    assert gaps.mean[:2] == pytest.approx([2 / np.sqrt(2), 8 / np.sqrt(2)])
    assert np.isnan(gaps.mean[2])
    assert gaps.overall == pytest.approx(5 / np.sqrt(2))
    assert gaps.standard_error[0] == pytest.approx(np.sqrt(1 / 2))
    # Between: MSB = 2 * (9 + 9) / 1 = 36, (36 - 2) / 2 = 17, in units of the within variance 8.5.
    assert gaps.between == pytest.approx(8.5)


def test_shrinkage_pulls_cluster_means_towards_the_overall_mean_by_their_noise():
    gaps = cluster_gaps(np.array([1.0, 3.0, 7.0, 9.0]), np.array([0, 0, 1, 1]), k=2, shrinkage=True)
    pull = 2 / (2 + 1 / 8.5)
    assert gaps.shrunk == pytest.approx(np.array([5 - 3 * pull, 5 + 3 * pull]) / np.sqrt(2))


def test_the_variance_between_three_clusters_by_hand():
    gaps = cluster_gaps(np.array([0.0, 2.0, 4.0, 6.0, 5.0, 7.0]), np.array([0, 0, 1, 1, 2, 2]), k=3, shrinkage=True)
    # Means 1, 5 and 6 about 4. Mean squares: within 6 / 3 = 2, between 2 * (9 + 1 + 4) / 2 = 14; two rows each.
    assert gaps.unit == pytest.approx(np.sqrt(2))
    assert gaps.between * gaps.unit**2 == pytest.approx((14 - 2) / 2)
    # kappa = 2 / 6, so each mean is pulled to 2 / (2 + 1 / 3) = 6 / 7 of its way from the overall one.
    assert gaps.effect * gaps.unit == pytest.approx(6 / 7 * np.array([-3.0, 1.0, 2.0]))


def test_clusters_of_unequal_size_count_as_their_effective_rows():
    gaps = cluster_gaps(np.array([0.0, 2.0, 4.0, 4.0, 4.0, 10.0]), np.array([0, 0, 1, 1, 1, 2]), k=3, shrinkage=True)
    # Means 1, 4, 10 about 4; within 2 / 3, between (2 * 9 + 36) / 2 = 27; n0 = (6 - 14 / 6) / 2 = 11 / 6.
    assert gaps.between * gaps.unit**2 == pytest.approx((27 - 2 / 3) / (11 / 6))


def test_a_cluster_with_fewer_rows_is_shrunk_more():
    values, cluster = np.array([0.0, 2.0, 0.5, 1.5, 9.0, 11.0, 20.0]), np.array([0, 0, 0, 0, 1, 1, 2])
    gaps = cluster_gaps(values, cluster, 3, shrinkage=True)
    pulls = gaps.effect / (gaps.mean - gaps.overall)
    assert 1 > pulls[0] > pulls[1] > pulls[2] > 0


def test_a_failed_score_is_left_out_of_its_cluster():
    gaps = cluster_gaps(np.array([1.0, np.nan, 3.0]), np.array([0, 0, 0]), k=1, shrinkage=False)
    assert gaps.scored.tolist() == [2]
    assert gaps.mean[0] * gaps.unit == pytest.approx(2.0)


def test_one_row_per_cluster_tells_no_difference_from_noise():
    values, cluster = np.array([1.0, 5.0, 9.0]), np.arange(3)
    shrunk = cluster_gaps(values, cluster, 3, shrinkage=True)
    assert shrunk.between == 0
    assert shrunk.effect.tolist() == [0, 0, 0]
    assert cluster_gaps(values, cluster, 3, shrinkage=False).effect[2] > 0


def test_equal_gaps_stay_equal_whatever_rounding_does_to_their_means():
    for value in (0.1, 1e9 + 0.1, -0.7):
        gaps = cluster_gaps(np.full(10, value), np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1]), 2, shrinkage=False)
        assert gaps.effect.tolist() == [0, 0]
        assert gaps.between == 0


def test_clusters_that_are_constant_inside_are_not_measured_in_units_of_rounding():
    for low, high in ((0.1, 0.7), (-1 / 3, 0.3), (1e5 + 0.1, 1e5 + 0.7)):
        values = np.array([low] * 3 + [high] * 7)
        gaps = cluster_gaps(values, np.array([0] * 3 + [1] * 7), 2, shrinkage=True)
        assert gaps.unit == pytest.approx(values.std())
        assert gaps.between > 0


def test_huge_gaps_overflow_nothing():
    gaps = cluster_gaps(np.array([1e300, -1e300, 1e-300, 5e299]), np.array([0, 0, 1, 1]), 2, shrinkage=True)
    assert np.isfinite([*gaps.mean, *gaps.effect, gaps.between, gaps.unit]).all()


def test_removing_length_by_hand():
    # Least squares on lengths -1, 0, 1 (mean 0): slope (0*-1 + 1*0 + 5*1) / 2 = 2.5, of the variance 12.5 / 14.
    left, trend = remove_length(np.array([0.0, 1.0, 5.0, np.nan]), np.array([9.0, 10.0, 11.0, 99.0]))
    assert trend.slope == pytest.approx(2.5)
    assert trend.share == pytest.approx(12.5 / 14)
    assert left[:3] == pytest.approx([2.5, 1.0, 2.5])
    assert np.isnan(left[3])


def test_lengths_that_are_all_alike_explain_nothing():
    left, trend = remove_length(np.array([0.0, 1.0, 5.0]), np.full(3, 7.0))
    assert left.tolist() == [0.0, 1.0, 5.0]
    assert (trend.slope, trend.share) == (0.0, 0.0)
    assert remove_length(np.array([np.nan]), np.array([1.0]))[1].share == 0.0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(-500, 500)), min_size=2, max_size=40), st.data())
def test_what_length_control_leaves_is_uncorrelated_with_length(pairs, data):
    gap, longer = np.array(pairs, float).T
    failed = np.array(data.draw(st.lists(st.booleans(), min_size=len(gap), max_size=len(gap))))
    assume((~failed).any())
    left, trend = remove_length(np.where(failed, np.nan, gap), longer)
    kept, length = left[~failed], longer[~failed] - longer[~failed].mean()
    assert abs((kept * length).sum()) <= 1e-9 * max(1.0, np.abs(gap).max() * (length**2).sum())
    assert kept.mean() == pytest.approx(gap[~failed].mean(), abs=1e-7)
    assert 0 <= trend.share <= 1
    assert (np.isnan(left) == failed).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 9), st.integers(1, 5))
def test_the_shuffled_control_permutes_the_scored_clusters(scored, seed, number):
    counts = np.array(scored)
    source = shuffled_clusters(counts, seed, number)
    assert sorted(source) == list(range(len(counts)))
    assert (source[counts == 0] == np.flatnonzero(counts == 0)).all()
    assert (shuffled_clusters(counts, seed, number) == source).all()
