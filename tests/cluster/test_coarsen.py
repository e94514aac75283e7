import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.cluster.hierarchy import linkage
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from divsel_ray.cluster import coarsen
from divsel_ray.cluster.coarsen import merge_tree
from divsel_ray.errors import InputError


def random_centroids(k, d, seed=0):
    return np.random.default_rng(seed).normal(size=(k, d)).astype(np.float32)


def inertia_of(rows, labels):
    groups = (rows[labels == label].astype(np.float64) for label in np.unique(labels))
    return sum(np.square(group - group.mean(axis=0)).sum() for group in groups)


def sizes_of(*sizes):
    return np.array(sizes, np.int64)


@st.composite
def clusters(draw):
    k, d = draw(st.integers(1, 14)), draw(st.integers(1, 3))
    centroids = draw(hnp.arrays(np.float32, (k, d), elements=st.integers(-3, 3).map(float)))
    sizes = draw(hnp.arrays(np.int64, k, elements=st.integers(0, 4)))
    sizes[draw(st.integers(0, k - 1))] += 1
    return centroids, sizes


def test_three_weighted_points_on_a_line():
    tree = merge_tree(np.array([[0], [3], [10]], np.float32), sizes_of(3, 1, 2))
    assert tree.pairs.tolist() == [[0, 1], [0, 2]]
    # 3 * 1 / 4 * 3^2, then the mean is 0.75 and 4 * 2 / 6 * 9.25^2.
    np.testing.assert_allclose(tree.costs, [6.75, 4 / 3 * 9.25**2])
    two = tree.cut(2)
    assert two.labels.tolist() == [0, 0, 1]
    assert two.centroids.tolist() == [[0.75], [10]]
    assert two.sizes.tolist() == [4, 2]
    assert two.added_inertia == pytest.approx(6.75)


def test_weight_can_make_a_far_light_cluster_cheaper_than_a_near_heavy_one():
    centroids = np.array([[0], [2], [-3]], np.float32)
    assert merge_tree(centroids, sizes_of(1, 1, 1)).pairs[0].tolist() == [0, 1]
    # 10 * 10 / 20 * 4 = 20 against 10 * 1 / 11 * 9 = 8.2.
    assert merge_tree(centroids, sizes_of(10, 10, 1)).pairs[0].tolist() == [0, 2]


@pytest.mark.parametrize(("k", "d"), [(2, 3), (50, 2), (400, 8), (300, 40)])
def test_equal_weights_give_the_merges_of_scipy_and_the_clusters_of_scikit_learn(k, d):
    centroids = random_centroids(k, d, seed=k)
    tree = merge_tree(centroids, np.ones(k, np.int64))
    np.testing.assert_allclose(tree.costs, linkage(centroids.astype(np.float64), "ward")[:, 2] ** 2 / 2, rtol=1e-9)
    for k_coarse in {1, 2, max(1, k // 7), k // 2, k}:
        reference = AgglomerativeClustering(k_coarse, linkage="ward").fit(centroids.astype(np.float64))
        assert adjusted_rand_score(tree.cut(k_coarse).labels, reference.labels_) == 1


def test_a_size_counts_like_so_many_equal_points():
    centroids = random_centroids(60, 4)
    sizes = np.random.default_rng(1).integers(1, 9, 60)
    duplicated = linkage(np.repeat(centroids, sizes, axis=0).astype(np.float64), "ward")[:, 2] ** 2 / 2
    np.testing.assert_allclose(merge_tree(centroids, sizes).costs, duplicated[-59:], rtol=1e-9)
    assert duplicated[:-59].max() < 1e-12


@pytest.mark.parametrize("k_coarse", [1, 2, 5, 17, 29, 30])
def test_the_coarse_inertia_is_the_fine_inertia_and_what_was_added(k_coarse):
    generator = np.random.default_rng(7)
    rows, labels = generator.normal(size=(900, 6)), generator.integers(0, 30, 900)
    means = np.array([rows[labels == label].mean(axis=0) for label in range(30)])
    coarse = merge_tree(means.astype(np.float32), np.bincount(labels)).cut(k_coarse)
    assert inertia_of(rows, coarse.labels[labels]) == pytest.approx(inertia_of(rows, labels) + coarse.added_inertia, rel=1e-6)
    expected = [rows[coarse.labels[labels] == label].mean(axis=0) for label in range(k_coarse)]
    np.testing.assert_allclose(coarse.centroids, expected, atol=1e-6)
    assert (coarse.sizes == np.bincount(coarse.labels[labels])).all()


def check_every_merge_is_the_cheapest(centroids, sizes):
    tree = merge_tree(centroids, sizes)
    for k in range(len(sizes), 1, -1):
        now = tree.cut(k)
        means = np.array([np.average(centroids[now.labels == j], 0, np.maximum(sizes[now.labels == j], 1e-30)) for j in range(k)])
        a, b = np.triu_indices(k, 1)
        weights = now.sizes[a] * now.sizes[b] / np.maximum(now.sizes[a] + now.sizes[b], 1)
        cheapest = (weights * np.square(means[a] - means[b]).sum(axis=1)).min()
        assert tree.costs[len(sizes) - k] == pytest.approx(cheapest, rel=1e-6, abs=1e-9)


@given(clusters())
@settings(max_examples=80, deadline=None)
def test_every_merge_is_the_cheapest_there_is(case):
    check_every_merge_is_the_cheapest(*case)


def test_merges_are_the_cheapest_where_a_matrix_product_cannot_tell():
    generator = np.random.default_rng(2)
    centroids = (2.0**23 + generator.integers(0, 4, (70, 3))).astype(np.float32)
    check_every_merge_is_the_cheapest(centroids, generator.integers(1, 6, 70))


def test_merges_are_the_cheapest_when_only_some_neighbours_are_looked_for_at_a_time():
    generator = np.random.default_rng(3)
    check_every_merge_is_the_cheapest(random_centroids(200, 20), generator.integers(1, 30, 200))


@pytest.mark.parametrize("seed", range(4))
def test_merges_that_all_cost_the_same_come_after_those_they_build_on(seed):
    # Corners of a regular simplex: whatever is merged, every next merge costs as much.
    generator = np.random.default_rng(seed)
    k, edge, offset = generator.integers(3, 40), generator.uniform(0.1, 2), generator.uniform(-1, 1)
    tree = merge_tree((edge * np.eye(k) + offset).astype(np.float32), np.ones(k, np.int64))
    np.testing.assert_allclose(tree.costs, edge**2, rtol=1e-5)
    assert all(second not in tree.pairs[i + 1 :] for i, (_, second) in enumerate(tree.pairs))


@given(clusters())
@settings(max_examples=80, deadline=None)
def test_cuts_are_nested_numbered_by_their_lowest_fine_cluster_and_the_same_in_every_run(case):
    tree, again = merge_tree(*case), merge_tree(*case)
    assert all((field == other).all() for field, other in zip(tree, again, strict=True))
    finer = None
    for k in range(len(case[1]), 0, -1):
        labels = tree.cut(k).labels
        assert list(dict.fromkeys(labels.tolist())) == list(range(k))
        if finer is not None:
            assert len({*zip(finer.tolist(), labels.tolist(), strict=True)}) == k + 1
        finer = labels


@given(clusters())
@settings(max_examples=40, deadline=None)
def test_small_chunks_change_nothing(case):
    whole = merge_tree(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarsen, "_SCREEN_ELEMENTS", 5)
        assert all((field == other).all() for field, other in zip(whole, merge_tree(*case), strict=True))


def test_as_many_clusters_as_there_are_change_nothing_and_one_is_the_mean_of_all():
    centroids, sizes = random_centroids(9, 3), np.arange(1, 10)
    tree = merge_tree(centroids, sizes)
    same, one = tree.cut(9), tree.cut(1)
    assert same.labels.tolist() == list(range(9))
    assert (same.centroids == centroids).all()
    assert (same.sizes == sizes).all()
    assert same.added_inertia == 0
    np.testing.assert_allclose(one.centroids[0], np.average(centroids, 0, sizes), rtol=1e-5)
    assert one.added_inertia == pytest.approx(inertia_of(np.repeat(centroids, sizes, axis=0), np.zeros(45)), rel=1e-6)


def test_one_cluster_has_nothing_to_merge():
    tree = merge_tree(np.array([[1, 2]], np.float32), sizes_of(5))
    assert tree.pairs.shape == (0, 2)
    assert tree.cut(1).centroids.tolist() == [[1, 2]]


def test_an_empty_cluster_joins_its_nearest_first_and_moves_no_mean():
    centroids = np.array([[90, 0], [0, 0], [100, 0], [1, 0]], np.float32)
    tree = merge_tree(centroids, sizes_of(0, 3, 2, 1))
    assert tree.cut(4).sizes.tolist() == [0, 3, 2, 1]
    three = tree.cut(3)
    assert three.labels.tolist() == [0, 1, 0, 2]
    assert three.centroids.tolist() == [[100, 0], [0, 0], [1, 0]]
    assert three.added_inertia == 0
    two = tree.cut(2)
    assert two.labels.tolist() == [0, 1, 0, 1]
    assert two.centroids.tolist() == [[100, 0], [0.25, 0]]
    assert two.added_inertia == pytest.approx(0.75)


def test_equal_centroids_merge_at_no_cost_lowest_first():
    tree = merge_tree(np.tile(np.float32([0.1, 0.7]), (6, 1)), np.arange(1, 7))
    assert (tree.costs == 0).all()
    assert tree.cut(1).centroids.tolist() == np.float32([[0.1, 0.7]]).tolist()
    assert tree.pairs[0].tolist() == [0, 1]


def test_a_chain_of_widening_gaps_takes_one_merge_a_round_and_is_still_right():
    centroids = (4.0 ** np.arange(40))[:, None].astype(np.float32)
    tree = merge_tree(centroids, np.ones(40, np.int64))
    assert tree.pairs.tolist() == [[0, i] for i in range(1, 40)]


def test_an_offset_far_larger_than_the_distances_does_not_hide_the_neighbours():
    centroids = np.float32([[4096.0, 0], [4096.5, 0], [4097.5, 0], [4096.0, 4]])
    assert merge_tree(centroids, sizes_of(1, 1, 1, 1)).pairs[0].tolist() == [0, 1]


@pytest.mark.parametrize("k_coarse", [0, 4])
def test_a_cut_the_tree_does_not_have_is_refused(k_coarse):
    with pytest.raises(InputError, match=f"k_coarse={k_coarse}: expected 1 to 3"):
        merge_tree(random_centroids(3, 2), sizes_of(1, 1, 1)).cut(k_coarse)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (sizes_of(1, 2), "sizes: shape \\(2,\\)"),
        (sizes_of(0, 0, 0), "sizes: .*all zero"),
        (sizes_of(1, -1, 2), "sizes: negative"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        merge_tree(random_centroids(3, 2), sizes)


def test_a_centroid_that_is_not_finite_is_named():
    centroids = random_centroids(3, 2)
    centroids[1, 0] = np.nan
    with pytest.raises(InputError, match="centroid 1: contains a NaN"):
        merge_tree(centroids, sizes_of(1, 1, 1))
