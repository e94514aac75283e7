import warnings

import numpy as np
import pytest
import ray
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from divsel_ray.cluster.estimator import KMeans
from divsel_ray.errors import InputError
from divsel_ray.resources import connect


def random_rows(n, d, dtype=np.float16):
    return np.random.default_rng(0).normal(size=(n, d)).astype(dtype)


def test_fit_gives_the_same_labels_for_1_2_and_7_shards(cluster):
    rows = random_rows(700, 12)
    one, two, seven = (KMeans(9, n_shards=n).fit(rows) for n in (1, 2, 7))
    assert (one.labels_ == two.labels_).all()
    assert (one.labels_ == seven.labels_).all()
    assert one.inertia_ == two.inertia_ == seven.inertia_
    assert (one.cluster_centers_ == seven.cluster_centers_).all()
    assert len(np.unique(one.labels_)) == 9


def test_labels_inertia_and_prediction_belong_to_the_final_centroids(cluster):
    rows = random_rows(300, 5, np.float32)
    model = KMeans(6, max_iter=2)
    assert (model.fit_predict(rows) == model.labels_).all()
    assert (model.predict(rows) == model.labels_).all()
    distances = np.square(rows[:, None].astype(float) - model.cluster_centers_[None]).sum(axis=2)
    assert (model.labels_ == distances.argmin(axis=1)).all()
    assert model.inertia_ == pytest.approx(distances.min(axis=1).sum(), rel=1e-6)
    assert (model.n_iter_, model.n_features_in_) == (2, 5)


def test_first_centroids_may_be_given(cluster):
    rows = np.array([[0.0], [1.0], [10.0], [11.0]])
    model = KMeans(2, init=[[0.0], [1.0]]).fit(rows)
    assert model.cluster_centers_.tolist() == [[0.5], [10.5]]
    assert model.labels_.tolist() == [0, 0, 1, 1]


def test_bad_rows_are_named_by_number(cluster):
    rows = random_rows(30, 3, np.float32)
    rows[21, 0] = np.nan
    with pytest.raises(InputError, match="X: row 21"):
        KMeans(3).fit(rows)
    with pytest.raises(InputError, match="X: row 0"):
        KMeans(2).fit(np.full((4, 2), 1e300))


def test_too_few_distinct_rows_warn(cluster):
    with pytest.warns(ConvergenceWarning, match="2 of 4 clusters are empty"):
        model = KMeans(4).fit(np.array([[1.0], [1.0], [2.0], [2.0], [2.0]]))
    assert model.inertia_ == 0


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"n_clusters": 0}, "n_clusters=0"),
        ({"n_clusters": 11}, "k 11 exceeds the pool's 10 rows; lower cluster.k"),
        ({"init": "best"}, "init='best'"),
        ({"init": np.zeros((3, 2))}, r"init: shape \(3, 2\); expected \(8, 2\)"),
        ({"init": np.full((8, 2), np.nan)}, "init: contains a NaN"),
        ({"n_init": 0}, "n_init=0"),
        ({"max_iter": 1.5}, "max_iter=1.5"),
        ({"tol": -1}, "tol=-1"),
        ({"metric": "manhattan"}, "metric='manhattan': expected 'euclidean' or 'cosine'"),
        ({"mode": "disk"}, "mode='disk'"),
        ({"mode": "streaming"}, "mode='streaming': reads Parquet files"),
        ({"fit_rows": 0}, "fit_rows=0"),
        ({"max_size": 1}, "max_size=1: 8 clusters of that size have no room for 10 rows"),
        ({"n_shards": 0}, "n_shards=0"),
        ({"seed": None}, "seed=None: expected an integer"),
        ({"tol": None}, "tol=None: expected a number"),
    ],
)
def test_wrong_parameters_are_refused_before_ray_is_used(parameters, said):
    with pytest.raises(InputError, match=said):
        KMeans(**parameters).fit(np.zeros((10, 2)))


@pytest.mark.parametrize(
    ("X", "said"), [(np.zeros(4), "shape"), ("nowhere", "no such file"), ([["a"], ["b"]], "expected an array .* of numbers")]
)
def test_wrong_data_is_refused(X, said):
    with pytest.raises(InputError, match=said):
        KMeans(1).fit(X)


def test_parameters_are_scikit_learns(cluster):
    model = KMeans(3, n_init=2).set_params(seed=4)
    assert clone(model).get_params() == model.get_params()
    assert model.get_params()["seed"] == 4
    with pytest.raises(NotFittedError):
        model.predict(np.zeros((2, 2)))


def test_prediction_needs_the_fitted_dimension(cluster):
    model = KMeans(2).fit(np.array([[0.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(InputError, match="X: has 3 dimensions"):
        model.predict(np.zeros((1, 3)))
    assert model.predict(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_a_ray_dataset_gives_the_labels_of_its_rows_in_order_whatever_its_blocks(cluster, blocks):
    rows = random_rows(160, 6)
    dataset = ray.data.from_numpy([part.copy() for part in np.array_split(rows, blocks)])
    found, expected = KMeans(5, n_shards=3).fit(dataset), KMeans(5).fit(rows)
    assert (found.labels_ == expected.labels_).all()
    assert (found.predict(dataset) == expected.labels_).all()


def test_a_dataset_needs_a_column_of_vectors(cluster):
    with pytest.raises(InputError, match="column id contains int"):
        KMeans(2).fit(ray.data.range(4))
    with pytest.raises(InputError, match=r"columns \['a', 'b'\]; expected one named embedding"):
        KMeans(2).fit(ray.data.from_items([{"a": 1, "b": 2}]))


def test_a_bfloat16_tensor_is_clustered_as_it_is(cluster):
    rows = torch.randn(90, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, expected = KMeans(4).fit(rows), KMeans(4).fit(rows.float().numpy())
    assert (found.labels_ == expected.labels_).all()


def test_cosine_follows_directions_and_refuses_rows_without_one(cluster):
    rows = np.array([[1, 0], [40, 1], [0, 2], [0.1, 9]], np.float32)
    model = KMeans(2, metric="cosine").fit(rows)
    assert model.labels_[0] == model.labels_[1] != model.labels_[2] == model.labels_[3]
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-6)
    assert (model.predict(rows * 7) == model.labels_).all()
    with pytest.raises(InputError, match="X: row 2: a vector of zeros has no direction"):
        KMeans(2, metric="cosine").fit(np.array([[1, 0], [0, 1], [0, 0]], np.float32))


def test_no_cluster_exceeds_the_size_cap(cluster):
    rows = np.concatenate([random_rows(150, 3) * np.float16(0.01), random_rows(50, 3)])
    free, capped = KMeans(8).fit(rows), KMeans(8, max_size=30).fit(rows)
    assert np.bincount(free.labels_).max() > 30
    assert np.bincount(capped.labels_).max() <= 30
    distances = np.square(rows.astype(float) - capped.cluster_centers_[capped.labels_]).sum()
    assert capped.inertia_ == pytest.approx(distances, rel=1e-6)
    assert (KMeans(8, max_size=30, n_shards=5).fit(rows).labels_ == capped.labels_).all()


def test_the_history_tells_every_iteration(cluster):
    model = KMeans(6, max_iter=4, tol=0).fit(random_rows(300, 5))
    assert [step.iteration for step in model.history_] == [1, 2, 3, 4]
    assert model.history_[-1].inertia >= model.inertia_


def test_a_checkpoint_lets_a_fit_continue(cluster, tmp_path):
    rows = random_rows(400, 5)
    path = tmp_path / "fit.npz"
    short = KMeans(7, max_iter=9, tol=0, checkpoint=path).fit(rows)
    again = KMeans(7, max_iter=9, tol=0, checkpoint=path).fit(rows)
    assert again.history_ == short.history_
    assert [step.seconds for step in KMeans(7, max_iter=9, tol=0).fit(rows).history_] != [s.seconds for s in short.history_]
    assert KMeans(7, max_iter=9, tol=0, checkpoint=path, seed=1).fit(rows).history_ != short.history_


def test_a_fine_fit_yields_nested_coarser_ones(cluster):
    rows = random_rows(500, 4, np.float32)
    fine = KMeans(40, tol=0).fit(rows)
    eight = fine.coarsen(8)
    three = eight.coarsen(3)
    for model, k in ((eight, 8), (three, 3)):
        assert sorted(set(model.labels_.tolist())) == list(range(k))
        means = np.array([rows[model.labels_ == j].mean(axis=0) for j in range(k)])
        np.testing.assert_allclose(model.cluster_centers_, means, atol=1e-4)
        assert model.inertia_ == pytest.approx(np.square(rows - means[model.labels_]).sum(), rel=1e-4)
        assert (model.predict(rows) == model.labels_).all()
    assert len(set(zip(eight.labels_.tolist(), three.labels_.tolist(), strict=True))) == 8
    with pytest.raises(InputError, match="expected 1 to 40"):
        fine.coarsen(41)


def test_few_rows_are_clustered_in_this_process_and_n_shards_asks_for_actors():
    ray.shutdown()
    try:
        model = KMeans(3).fit(random_rows(60, 4))
        assert not ray.is_initialized()
        assert (KMeans(3, n_shards=2).fit(random_rows(60, 4)).labels_ == model.labels_).all()
        assert ray.is_initialized()
    finally:
        connect()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_layout_of_an_array_in_memory_changes_no_bit(cluster, dtype):
    rows = random_rows(300, 9, dtype)
    plain = KMeans(6).fit(rows)
    for other in (np.asfortranarray(rows), np.ascontiguousarray(rows[::-1])[::-1], np.repeat(rows, 2, axis=1)[:, ::2]):
        found = KMeans(6).fit(other)
        assert (found.inertia_, found.cluster_centers_.tobytes()) == (plain.inertia_, plain.cluster_centers_.tobytes())


def test_a_bfloat16_tensor_goes_to_actors_too(cluster):
    rows = torch.randn(90, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert (KMeans(4, n_shards=2).fit(rows).labels_ == KMeans(4).fit(rows).labels_).all()


def test_the_checkpoint_of_other_rows_is_not_continued(cluster, tmp_path):
    rows = random_rows(200, 4)
    path = tmp_path / "fit.npz"
    first = KMeans(5, checkpoint=path).fit(rows)
    for other in (-rows, rows[::-1].copy()):
        found = KMeans(5, checkpoint=path).fit(other)
        assert found.cluster_centers_.tobytes() == KMeans(5).fit(other).cluster_centers_.tobytes()
        assert found.cluster_centers_.tobytes() != first.cluster_centers_.tobytes()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_more_clusters_than_distinct_directions_end_with_a_warning(seed):
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(50, 384)).astype(np.float16)[generator.integers(0, 50, 500)]
    with pytest.warns(ConvergenceWarning, match="clusters are empty"):
        model = KMeans(120, metric="cosine", init="random", max_iter=50).fit(X)
    assert len(np.unique(model.labels_)) == len(np.unique(X, axis=0))


@pytest.mark.parametrize(("mean", "deviation"), [(2024, 0.3), (472_222, 24)])
def test_rows_far_from_the_origin_are_in_the_cluster_of_the_nearest_centroid(cluster, mean, deviation):
    X = np.random.default_rng(1).normal(mean, deviation, (3000, 1)).astype(np.float32)
    one, three = (KMeans(50, n_shards=shards).fit(X) for shards in (1, 3))
    distances = np.square(X.astype(float)[:, None] - one.cluster_centers_.astype(float)).sum(axis=2)
    np.testing.assert_array_equal(np.take_along_axis(distances, one.labels_[:, None], axis=1)[:, 0], distances.min(axis=1))
    np.testing.assert_array_equal(one.predict(X), one.labels_)
    assert one.cluster_centers_.tobytes() == three.cluster_centers_.tobytes()
    np.testing.assert_array_equal(one.labels_, three.labels_)


def test_float64_values_that_float32_does_not_tell_apart_are_warned_of():
    seconds = 1.7e9 + np.repeat([0.0, 20.0, 40.0], 50)[:, None]
    with pytest.warns(UserWarning, match="X: values are too far from 0 for float32, .* subtract their mean first"):
        KMeans(3).fit(seconds)
    labels = KMeans(3).fit(seconds - seconds.mean()).labels_
    assert np.bincount(labels).tolist() == [50, 50, 50]


def test_first_directions_count_and_not_their_lengths():
    X = np.random.default_rng(0).normal(size=(300, 5))
    init = X[:8]
    short, long = (KMeans(8, metric="cosine", init=scale * init).fit(X) for scale in (1.0, np.arange(1, 9)[:, None] * 3.0))
    np.testing.assert_array_equal(short.labels_, long.labels_)
    with pytest.raises(InputError, match="init: contains a vector of zeros"):
        KMeans(8, metric="cosine", init=np.vstack([init[:7], np.zeros(5)])).fit(X)


def test_coarser_clusters_of_centroids_that_are_no_means_are_warned_of():
    X = np.random.default_rng(0).normal(size=(600, 4))
    with pytest.warns(ConvergenceWarning, match="not the means of their rows"):
        KMeans(20, max_iter=1).fit(X).coarsen(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KMeans(20, tol=0).fit(X).coarsen(5)


def test_a_verbose_fit_says_how_it_ended(capsys):
    KMeans(3, verbose=True).fit(np.random.default_rng(0).normal(size=(60, 2)))
    assert "k-means" in (said := capsys.readouterr().err)
    assert "3 clusters, inertia" in said


def test_somebodys_array_is_not_taken_for_a_checkpoint(tmp_path):
    np.save(tmp_path / "mine.npy", np.arange(3))
    with pytest.raises(InputError, match=r"mine\.npy: contains an array"):
        KMeans(3, checkpoint=tmp_path / "mine.npy").fit(np.random.default_rng(0).normal(size=(60, 2)))
    assert np.load(tmp_path / "mine.npy").tolist() == [0, 1, 2]
