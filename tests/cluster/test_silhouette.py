import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from divsel_ray.cluster import silhouette
from divsel_ray.cluster.exact import exact_total
from divsel_ray.cluster.rows import bounds
from divsel_ray.cluster.shard import Shard


def mean_silhouette(rows, centroids, parts=1):
    centroids = np.asarray(centroids, np.float32)
    shards = [Shard(rows[low:high], low) for low, high in bounds(len(rows), parts)]
    sizes = sum(np.bincount(shard.assign(centroids).labels, minlength=len(centroids)) for shard in shards)
    return exact_total(sum(silhouette.simplified(shard, centroids, sizes) for shard in shards)) / len(rows)


def by_brute_force(rows, centroids):
    distances = np.linalg.norm(rows.astype(float)[:, None] - np.asarray(centroids, float)[None], axis=2)
    own = distances.argmin(axis=1)
    sizes = np.bincount(own, minlength=len(centroids))
    values = []
    for row, cluster in enumerate(own):
        others = [distances[row, other] for other in range(len(centroids)) if other != cluster and sizes[other]]
        a, b = distances[row, cluster], min(others, default=0.0)
        values.append((b - a) / max(a, b) if sizes[cluster] > 1 and max(a, b) > 0 and others else 0.0)
    return np.mean(values)


def random_rows(n, d, dtype=np.float16, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


def test_four_rows_by_hand():
    # a = 1 throughout; b = 9, 7, 7, 9 (distances, not squared ones: those would give 80/81 and 48/49).
    rows = np.array([[0.0], [2], [8], [10]], np.float16)
    assert mean_silhouette(rows, [[1], [9]]) == pytest.approx((8 / 9 + 6 / 7) / 2, abs=1e-12)


def test_a_row_alone_in_its_cluster_counts_as_zero():
    # The row at 10 is alone. The others: a = 1, b = 10 - 0 and 10 - 2.
    rows = np.array([[0.0], [2], [10]], np.float16)
    assert mean_silhouette(rows, [[1], [10]]) == pytest.approx((9 / 10 + 7 / 8 + 0) / 3, abs=1e-12)


def test_one_cluster_counts_as_zero():
    assert mean_silhouette(random_rows(20, 3), [[0, 0, 0]]) == 0


def test_clusters_without_rows_are_no_neighbours():
    rows = np.array([[0.0], [2], [8], [10]], np.float16)
    with_empty = mean_silhouette(rows, [[1], [1], [9], [500]])
    assert with_empty == mean_silhouette(rows, [[1], [9]])


def test_rows_on_two_centroids_at_once_count_as_zero():
    rows = np.array([[1.0], [1], [3], [3]], np.float16)
    assert mean_silhouette(rows, [[2], [200]]) == pytest.approx(mean_silhouette(rows, [[2]]))
    assert mean_silhouette(np.array([[1.0], [1], [4], [4]], np.float16), [[1], [4]]) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n", "d", "k"), [(300, 2, 5), (900, 17, 60), (400, 64, 390)])
def test_equals_a_brute_force_computation(n, d, k, dtype):
    rows = random_rows(n, d, dtype)
    centroids = rows[:k].astype(np.float32) + random_rows(k, d, np.float32, seed=1) * np.float32(0.3)
    assert mean_silhouette(rows, centroids) == pytest.approx(by_brute_force(rows, centroids), rel=1e-9)


def test_the_partition_of_the_rows_changes_no_bit():
    rows = random_rows(1200, 33)
    centroids = random_rows(40, 33, np.float32, seed=1) * np.float32(0.5)
    one, two, seven = (mean_silhouette(rows, centroids, parts) for parts in (1, 2, 7))
    assert one == two == seven


def test_the_nearest_other_centroid_is_exact_among_near_ties():
    rows = random_rows(500, 48)
    centroids = np.repeat(random_rows(6, 48, np.float32, seed=1), 5, axis=0)
    centroids += random_rows(30, 48, np.float32, seed=2) * np.float32(1e-6)
    distances = np.square(rows.astype(float)[:, None] - centroids.astype(float)[None]).sum(axis=2)
    own = distances.argmin(axis=1)
    distances[np.arange(len(rows)), own] = np.inf
    found = silhouette.nearest_other(torch.from_numpy(rows), centroids, own.astype(np.int32))
    np.testing.assert_allclose(found, distances.min(axis=1), rtol=1e-13)


def test_without_another_centroid_the_nearest_is_infinitely_far():
    found = silhouette.nearest_other(torch.zeros(2, 3), np.zeros((1, 3), np.float32), np.zeros(2, np.int32))
    assert found.tolist() == [np.inf, np.inf]


def test_the_standard_silhouette_is_scikit_learns():
    rows = random_rows(200, 5)
    labels = (rows[:, 0] > 0).astype(np.int32)
    assert silhouette.standard(rows, labels) == pytest.approx(silhouette_score(rows.astype(float), labels), rel=1e-4)


def test_the_standard_silhouette_by_hand():
    # Rousseeuw's definition: a = 2, b = the mean distance to the other pair = 9, 7, 7, 9.
    rows, labels = np.array([[0.0], [2], [8], [10]], np.float16), np.array([0, 0, 1, 1], np.int32)
    assert silhouette.standard(rows, labels) == pytest.approx((7 / 9 + 5 / 7) / 2, abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_a_sample_in_one_cluster_or_in_as_many_as_rows_has_no_standard_silhouette(labels):
    assert silhouette.standard(random_rows(3, 2), np.array(labels, np.int32)) is None


def test_the_simplified_silhouette_of_tiny_clusters_does_not_look_perfect():
    rows = random_rows(60, 4)
    values = [mean_silhouette(rows, rows[:k].astype(np.float32)) for k in (20, 59)]
    assert all(later < 0.5 for later in values)
    assert all(first > second for first, second in itertools.pairwise(values))
