import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from divsel_ray.cluster.estimator import KMeans
from divsel_ray.errors import InputError


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
        ({"init": np.zeros((3, 2))}, r"init has shape \(3, 2\); expected \(8, 2\)"),
        ({"init": np.full((8, 2), np.nan)}, "init holds a NaN"),
        ({"n_init": 0}, "n_init=0"),
        ({"max_iter": 1.5}, "max_iter=1.5"),
        ({"tol": -1}, "tol=-1"),
        ({"metric": "cosine"}, "metric='cosine'"),
        ({"n_shards": 0}, "n_shards=0"),
    ],
)
def test_wrong_parameters_are_refused_before_ray_is_used(parameters, said):
    with pytest.raises(InputError, match=said):
        KMeans(**parameters).fit(np.zeros((10, 2)))


@pytest.mark.parametrize(
    ("X", "said"), [(np.zeros(4), "shape"), ("nowhere", "no such file"), ([["a"], ["b"]], "expected numbers")]
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
    with pytest.raises(InputError, match="X has 3 dimensions"):
        model.predict(np.zeros((1, 3)))
    assert model.predict(np.empty((0, 2))).shape == (0,)


def test_a_ray_dataset_is_refused_with_advice(cluster):
    import ray

    with pytest.raises(InputError, match="write_parquet"):
        KMeans(2).fit(ray.data.range(4))
