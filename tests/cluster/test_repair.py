import numpy as np

from divsel_ray.cluster import repair
from divsel_ray.cluster.exact import Grid
from divsel_ray.cluster.repair import Farthest
from divsel_ray.cluster.shard import Shard


def test_an_emptied_cluster_takes_the_farthest_row_out_of_its_old_cluster():
    rows = np.array([[0, 0], [2, 0], [10, 0], [1, 3]], np.float16)
    centroids = np.array([[1, 0], [50, 50], [60, 60]], np.float32)
    shard, grid = Shard(rows), Grid.of(4, 10)
    _, present, members = shard.change(None, centroids, grid)
    sums, counts = np.zeros((3, 2)), np.zeros(3, np.int64)
    sums[0], counts[0] = present[0], members[0]
    far = shard.farthest(centroids, 2)
    assert far.indices.tolist() == [2, 3]
    assert far.squared_distances.tolist() == [81.0, 9.0]
    sums, counts = repair.relocate(sums, counts, far, grid)
    assert counts.tolist() == [2, 1, 1]
    assert repair.finish(sums, counts, centroids).tolist() == [[1, 0], [10, 0], [1, 3]]


def test_a_cluster_that_stays_empty_keeps_its_centroid():
    sums, counts = np.array([[4.0, 8.0], [0.0, 0.0]]), np.array([4, 0])
    assert repair.finish(sums, counts, np.array([[9, 9], [7, 5]], np.float32)).tolist() == [[1, 2], [7, 5]]


def test_a_row_on_its_centroid_is_never_relocated():
    assert repair.farthest(np.array([0.0, 2.0, 0.0, 3.0]), 4).tolist() == [3, 1]


def test_farthest_rows_of_parts_merge_by_distance_then_row_number():
    def part(distances, indices):
        n = len(indices)
        rows = np.array(indices, np.float32)[:, None]
        return Farthest(np.array(distances, np.float32), np.array(indices), np.arange(n, dtype=np.int32), rows)

    merged = repair.merge_farthest([part([4, 1], [7, 8]), part([9, 4], [3, 2])], 3)
    assert merged.indices.tolist() == [3, 2, 7]
    assert merged.rows[:, 0].tolist() == [3, 2, 7]


def test_spherical_means_have_unit_length_and_a_mean_of_zero_keeps_its_centroid():
    sums, counts = np.array([[6.0, 8.0], [0.0, 0.0], [0.0, 0.0]]), np.array([4, 2, 0])
    old = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    found = repair.finish(sums, counts, old, spherical=True)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 1], [1, 0]], rtol=1e-6)
