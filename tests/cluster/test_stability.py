import numpy as np
import pytest
from sklearn.datasets import make_blobs

from divsel_ray.cluster import stability
from divsel_ray.cluster.lloyd import Settings
from tests.cluster.vectors import shards_of


def numbered_rows(n):
    """Row i holds i in its first feature."""
    return np.stack([np.arange(n), np.ones(n)], axis=1).astype(np.float32)


def test_subsamples_hold_half_the_rows_up_to_a_cap_that_grows_with_k():
    assert stability.subsample_rows(1_000, 64) == 500
    assert stability.subsample_rows(1_000_000, 64) == 20_000
    assert stability.subsample_rows(1_000_000, 8192) == 81_920
    assert stability.subsample_rows(100_000, 8192) == 50_000
    assert (stability.evaluation_rows(900), stability.evaluation_rows(10**6)) == (900, 10_000)


def test_a_draw_holds_each_row_once_and_its_beginning_is_the_smaller_draw():
    rows = numbered_rows(500)
    large = stability.draw_rows(shards_of(rows, 2), 3, 1, 300)
    assert len(np.unique(large[:, 0])) == 300
    assert (stability.draw_rows(shards_of(rows, 2), 3, 1, 40) == large[:40]).all()
    assert (large[:, 0] != np.sort(large[:, 0])).any()


def test_a_draw_does_not_depend_on_the_partitions():
    rows = numbered_rows(301)
    one, two, seven = (stability.draw_rows(shards_of(rows, parts), 0, 2, 100) for parts in (1, 2, 7))
    assert one.tobytes() == two.tobytes() == seven.tobytes()


def test_draws_of_other_numbers_and_seeds_overlap_only_by_chance():
    shards = shards_of(numbered_rows(4_000), 1)
    first, *others = (set(stability.draw_rows(shards, *which, 1_000)[:, 0]) for which in ((0, 1), (0, 2), (1, 1)))
    assert all(200 < len(first & other) < 300 for other in others)


def test_all_rows_can_be_drawn():
    rows = numbered_rows(30)
    assert sorted(stability.draw_rows(shards_of(rows, 4), 0, 0, 30)[:, 0]) == list(range(30))


def test_agreement_is_the_mean_and_deviation_over_all_pairs():
    # The same partition under other names: 1. Against {0, 2}, {1, 3}: no pair in common of 6, 2 in each, expected 2/3;
    # (0 - 2/3) / (2 - 2/3) = -1/2. Mean of 1, -1/2, -1/2: 0; sample variance (1 + 1/4 + 1/4) / 2 = 3/4.
    labelings = [np.array(labels, np.int32) for labels in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1])]
    mean, deviation = stability.agreement(labelings)
    assert mean == pytest.approx(0, abs=1e-12)
    assert deviation == pytest.approx(0.75**0.5)
    assert stability.agreement(labelings[:2]) == (1.0, 0.0)


def test_refits_of_planted_clusters_agree_and_those_of_too_many_do_not():
    rows, _ = make_blobs(2_000, 4, centers=8, cluster_std=0.3, center_box=(-9, 9), random_state=0)
    shards = shards_of(rows.astype(np.float16), 2)
    evaluation = stability.draw_rows(shards, 0, 0, 500)
    subsamples = [stability.draw_rows(shards, 0, number, 1_000) for number in (1, 2, 3)]

    def measure(k):
        fits = [stability.refit(sample, evaluation, Settings(k, n_init=3, seed=at)) for at, sample in enumerate(subsamples)]
        return stability.agreement(fits)

    assert measure(8) == (1.0, 0.0)
    assert measure(30)[0] < 0.8
