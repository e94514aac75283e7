import itertools

import numpy as np
import pytest
from sklearn.cluster import KMeans as Reference
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from divsel_ray.cluster import lloyd
from divsel_ray.cluster.lloyd import LocalShards, Settings
from divsel_ray.cluster.rows import bounds
from divsel_ray.cluster.shard import Shard


def shards_of(rows, parts=1):
    return LocalShards([Shard(rows[low:high], low) for low, high in bounds(len(rows), parts)])


def fit(rows, settings, parts=1):
    shards = shards_of(rows, parts)
    _, bad, variance = lloyd.combine_inspections(shards.map(Shard.inspect))
    assert bad is None
    return lloyd.fit(shards, settings, variance)


def labels_of(rows, centroids):
    return Shard(rows).assign(centroids).labels


def random_rows(n, d, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize(("n", "d", "k"), [(500, 2, 5), (2000, 16, 40), (900, 64, 8)])
def test_equals_scikit_learn_from_the_same_first_centroids(n, d, k):
    rows = random_rows(n, d)
    first = rows[:k].copy()
    reference = Reference(k, init=first, n_init=1, algorithm="lloyd").fit(rows.astype(np.float64))
    ours = fit(rows, Settings(k, init=first), parts=3)
    assert (labels_of(rows, ours.centroids) == reference.labels_).all()
    assert ours.inertia == pytest.approx(reference.inertia_, rel=1e-5)
    assert ours.iterations == reference.n_iter_
    assert ours.converged


def test_an_empty_cluster_is_repaired_as_scikit_learn_does():
    rows = random_rows(300, 3)
    first = np.concatenate([rows[:4], np.full((1, 3), 1e3, np.float32)])
    reference = Reference(5, init=first, n_init=1, algorithm="lloyd").fit(rows.astype(np.float64))
    ours = fit(rows, Settings(5, init=first), parts=2)
    assert (labels_of(rows, ours.centroids) == reference.labels_).all()
    assert ours.sizes.min() > 0


def test_an_emptied_cluster_takes_the_farthest_row_of_all_partitions_and_is_never_zero():
    rows = np.array([[1, 0], [3, 0], [2, 5], [2, 1]], np.float16)
    first = np.array([[2, 0], [90, 90], [80, 80]], np.float32)
    updated = lloyd.update(shards_of(rows, 3), first)
    assert updated.tolist() == [[2.5, 0.5], [2, 5], [1, 0]]


def test_inertia_never_rises():
    rows = random_rows(600, 8, np.float16)
    inertias = [fit(rows, Settings(30, max_iter=i, tol=0)).inertia for i in range(1, 15)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(inertias))
    assert inertias[-1] < 0.98 * inertias[0]


def test_separated_blobs_are_found():
    rows, truth = make_blobs(600, 5, centers=6, cluster_std=0.05, center_box=(-20, 20), random_state=3)
    found = fit(rows.astype(np.float32), Settings(6))
    assert adjusted_rand_score(truth, labels_of(rows.astype(np.float32), found.centroids)) == 1


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("k", [21, 1000])
def test_k_centroids_are_returned_and_all_are_used(init, k):
    rows = random_rows(3000, 4, np.float16)
    found = fit(rows, Settings(k, init=init, max_iter=5), parts=2)
    assert found.centroids.shape == (k, 4)
    assert len(np.unique(labels_of(rows, found.centroids))) == k
    assert found.sizes.sum() == 3000


def test_one_cluster_is_the_mean():
    rows = random_rows(101, 3, np.float16)
    found = fit(rows, Settings(1), parts=4)
    np.testing.assert_allclose(found.centroids[0], rows.astype(np.float64).mean(axis=0), rtol=1e-6)
    assert found.inertia == pytest.approx(np.square(rows - rows.astype(np.float64).mean(axis=0)).sum(), rel=1e-6)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_as_many_clusters_as_rows_give_each_row_its_own(init):
    rows = random_rows(40, 3, np.float16)
    found = fit(rows, Settings(40, init=init), parts=3)
    assert found.inertia == 0
    assert found.sizes.tolist() == [1] * 40


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_equal_rows_make_one_cluster_and_leave_the_others_empty(init):
    rows = np.tile(np.array([[0.1, -0.7, 0.3]], np.float16), (50, 1))
    found = fit(rows, Settings(4, init=init), parts=3)
    assert found.sizes.tolist() == [50, 0, 0, 0]
    assert found.inertia == 0
    assert (found.centroids == rows[0].astype(np.float32)).all()
    assert found.converged


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_the_partition_of_float16_rows_changes_no_bit(init):
    rows = random_rows(1500, 33, np.float16)
    one, two, seven = (fit(rows, Settings(37, init=init, n_init=2, seed=5), parts) for parts in (1, 2, 7))
    assert one.centroids.tobytes() == two.centroids.tobytes() == seven.centroids.tobytes()
    assert one.inertia == two.inertia == seven.inertia
    assert one.iterations == two.iterations == seven.iterations


def test_seeds_and_starts_draw_other_first_centroids():
    shards = shards_of(random_rows(400, 4), 2)
    draws = [lloyd.first_centroids(shards, Settings(5, seed=seed), start) for seed, start in ((0, 0), (0, 1), (1, 0))]
    assert not any((draws[i] == draws[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_best_of_several_starts_is_kept():
    rows, _ = make_blobs(300, 2, centers=9, cluster_std=0.1, center_box=(-9, 9), random_state=1)
    rows = rows.astype(np.float32)
    alone = [fit(rows, Settings(9, init=lloyd.first_centroids(shards_of(rows), Settings(9), start))) for start in range(4)]
    inertias = [one.inertia for one in alone]
    assert min(inertias) < max(inertias)
    assert fit(rows, Settings(9, n_init=4)).inertia == min(inertias)


def test_k_means_plus_plus_spreads_better_than_random_rows():
    rows, _ = make_blobs(2000, 4, centers=30, cluster_std=0.05, center_box=(-9, 9), random_state=0)
    rows = rows.astype(np.float32)
    spread, plain = (
        [fit(rows, Settings(30, init=i, seed=s, max_iter=1)).inertia for s in range(5)] for i in ("k-means++", "random")
    )
    assert np.mean(spread) < 0.5 * np.mean(plain)


def test_stopping_at_max_iter_is_said_and_inertia_belongs_to_the_last_centroids():
    rows = random_rows(800, 5)
    found = fit(rows, Settings(25, max_iter=2, tol=0))
    assert (found.converged, found.iterations) == (False, 2)
    labels, squared = Shard(rows).assign(found.centroids)
    assert found.inertia == pytest.approx(squared.astype(np.float64).sum(), rel=1e-12)
    assert (found.sizes == np.bincount(labels, minlength=25)).all()


def test_zero_vectors_are_ordinary_points():
    rows = np.array([[0, 0], [0, 0], [4, 4], [4, 5]], np.float16)
    found = fit(rows, Settings(2))
    assert sorted(found.centroids.tolist()) == [[0, 0], [4, 4.5]]


def test_the_variance_is_the_mean_variance_of_the_features():
    rows = (random_rows(500, 6) * np.arange(1, 7) + 100).astype(np.float16)
    _, _, variance = lloyd.combine_inspections(shards_of(rows, 3).map(Shard.inspect))
    assert variance == pytest.approx(rows.astype(np.float64).var(axis=0).mean(), rel=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_row_is_named(value):
    rows = random_rows(20, 3)
    rows[[13, 17], 1] = value
    assert lloyd.combine_inspections(shards_of(rows, 3).map(Shard.inspect))[1] == 13


def test_progress_counts_centroids_then_iterations_over_all_starts():
    reports = []
    shards = shards_of(random_rows(50, 2))
    lloyd.fit(shards, Settings(4, n_init=2, max_iter=3, tol=0), 1.0, lambda *report: reports.append(report))
    assert reports[:4] == [(2, 8, "centroids"), (3, 8, "centroids"), (4, 8, "centroids"), (1, 6, "iterations")]
    assert (6, 8, "centroids") in reports
    assert (4, 6, "iterations") in reports


def test_a_shard_that_forgot_its_centroids_asks_for_all_of_them():
    rows = random_rows(200, 3)
    settings = Settings(12, seed=2)

    class Forgetful(LocalShards):
        calls = 0

        def map(self, method, *args, **kwargs):
            self.calls += 1
            if self.calls % 3 == 0:
                self._shards[1] = Shard(rows[100:], 100)
            return super().map(method, *args, **kwargs)

    forgetful = Forgetful([Shard(rows[:100]), Shard(rows[100:], 100)])
    expected = lloyd.first_centroids(shards_of(rows, 2), settings, 0)
    assert (lloyd.first_centroids(forgetful, settings, 0) == expected).all()
    assert forgetful.calls > 12
