"""Cluster weights: Eq. 4-6 with the rules that make them well defined, by hand and by property."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import WeightsConfig
from divsel_ray.select.weights import cluster_gaps, update_weights

PLAIN = WeightsConfig(shrinkage=False, max_step=None)


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


def test_gaps_that_tell_no_clusters_apart_change_nothing():
    gaps = cluster_gaps(np.array([0.0, 10.0, 0.0, 10.0]), np.array([0, 0, 1, 1]), k=2, shrinkage=True)
    assert gaps.between <= 0
    assert update_weights(np.array([0.3, 0.7]), gaps, WeightsConfig()).tolist() == pytest.approx([0.3, 0.7])


def test_the_softmax_update_multiplies_by_exp_of_the_gap():
    gaps = cluster_gaps(np.array([1.0, 3.0, 7.0, 9.0]), np.array([0, 0, 1, 1]), k=2, shrinkage=False)
    updated = update_weights(np.array([0.5, 0.5]), gaps, PLAIN)
    assert np.log(updated[1] / updated[0]) == pytest.approx(6 / np.sqrt(2))


def test_learned_direction_reverses_the_order():
    gaps = cluster_gaps(np.array([1.0, 3.0, 7.0, 9.0]), np.array([0, 0, 1, 1]), k=2, shrinkage=True)
    lagging = update_weights(np.array([0.5, 0.5]), gaps, WeightsConfig())
    learned = update_weights(np.array([0.5, 0.5]), gaps, WeightsConfig(direction="learned"))
    assert lagging[1] > 0.5 > learned[1]


def test_a_cluster_without_a_scored_row_keeps_its_weight():
    gaps = cluster_gaps(np.array([1.0, 3.0, 7.0, 9.0]), np.array([0, 0, 2, 2]), k=4, shrinkage=False)
    updated = update_weights(np.array([0.1, 0.2, 0.3, 0.4]), gaps, PLAIN)
    assert updated[[1, 3]] == pytest.approx([0.2, 0.4])
    assert updated[[0, 2]].sum() == pytest.approx(0.4)


def test_memoryless_forgets_the_weights():
    gaps = cluster_gaps(np.array([1.0, 3.0, 7.0, 9.0]), np.array([0, 0, 1, 1]), k=2, shrinkage=False)
    config = PLAIN.model_copy(update={"update": "memoryless"})
    assert update_weights(np.array([0.9, 0.1]), gaps, config) == pytest.approx(update_weights(np.array([0.2, 0.8]), gaps, config))


def test_the_paper_update_keeps_order_when_all_gaps_are_negative():
    gaps = cluster_gaps(np.array([-9.0, -7.0, -3.0, -1.0]), np.array([0, 0, 1, 1]), k=2, shrinkage=False)
    updated = update_weights(np.array([0.5, 0.5]), gaps, WeightsConfig(update="paper", max_step=None))
    assert updated[1] > updated[0] > 0


def test_a_failed_score_is_left_out_of_its_cluster():
    gaps = cluster_gaps(np.array([1.0, np.nan, 3.0]), np.array([0, 0, 0]), k=1, shrinkage=False)
    assert gaps.scored.tolist() == [2]
    assert gaps.mean[0] * gaps.unit == pytest.approx(2.0)


def test_no_scored_row_at_all_leaves_the_weights():
    gaps = cluster_gaps(np.array([]), np.array([], dtype=int), k=2, shrinkage=True)
    assert update_weights(np.array([0.25, 0.75]), gaps, WeightsConfig()).tolist() == [0.25, 0.75]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_weights_stay_a_distribution_within_the_guards(data):
    k = data.draw(st.integers(1, 12))
    n = data.draw(st.integers(0, 40))
    values = data.draw(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=n, max_size=n))
    cluster = data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    raw = np.array(data.draw(st.lists(st.floats(0.01, 1.0), min_size=k, max_size=k)))
    before = raw / raw.sum()
    config = WeightsConfig(
        update=data.draw(st.sampled_from(["softmax", "paper", "memoryless"])),
        shrinkage=data.draw(st.booleans()),
        floor=data.draw(st.sampled_from([0.0, 0.2])),
        max_step=data.draw(st.sampled_from([None, 1.5, 4.0])),
    )
    gaps = cluster_gaps(np.array(values), np.array(cluster, dtype=int), k, shrinkage=config.shrinkage)
    after = update_weights(before, gaps, config)
    assert after.sum() == pytest.approx(1.0)
    assert (after >= 0).all()
    assert np.isfinite(after).all()
    if config.max_step is not None and config.floor == 0:
        assert (after <= before * config.max_step * (1 + 1e-6)).all()
        assert (after >= before / config.max_step * (1 - 1e-6)).all()
