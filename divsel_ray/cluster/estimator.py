"""k-means in scikit-learn's manner: `KMeans(n_clusters=64).fit(X)`, on this machine or on a Ray cluster."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from divsel_ray.cluster import distributed, kernels, rows
from divsel_ray.cluster.kernels import Float32, Int32, Rows
from divsel_ray.cluster.lloyd import LocalShards, Settings, Shards
from divsel_ray.cluster.shard import Shard
from divsel_ray.errors import InputError
from divsel_ray.progress import Silent
from divsel_ray.resources import connect

Data = Any
"""An array (n, d), a folder of Parquet files, or a list of them (columns `row_id` and `embedding`)."""


class KMeans(ClusterMixin, BaseEstimator):
    """Lloyd's k-means with k-means++ (Arthur and Vassilvitskii 2007), its rows spread over Ray actors.

    The result depends on the data, the parameters and the seed, never on the number of actors; for float16 vectors not
    on `n_shards` either.

    Args:
        n_clusters: number of clusters k.
        init: "k-means++", "random", or first centroids (k, d).
        n_init: starts; the one with the lowest inertia wins. An array `init` makes one start.
        max_iter: iterations of a start at most.
        tol: stop when the squared movement of all centroids is at most tol x the mean variance of the features.
        metric: "euclidean".
        seed: of the first centroids.
        n_shards: partitions of the rows; actors are at most this many.

    Attributes:
        cluster_centers_: (k, d) float32.
        labels_: (n,) int32, nearest centroid of each row of the fitted data.
        inertia_: sum of squared distances of the rows to their centroids.
        n_iter_: iterations of the best start.
        n_features_in_: d.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | Any = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        metric: str = "euclidean",
        seed: int = 0,
        n_shards: int = 2,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.metric = metric
        self.seed = seed
        self.n_shards = n_shards

    def fit(self, X: Data, y: None = None) -> KMeans:
        """Cluster the rows of `X`. Starts a local Ray where none runs.

        Raises:
            InputError: a parameter or the data is wrong; there are fewer rows than clusters; a row is not finite.
        """
        source = _Source(X, self.n_shards)
        settings = self._settings(source.dimension)
        if self.n_clusters > source.rows:
            raise distributed.too_many_clusters(self.n_clusters, source.rows)
        cluster = connect()
        with distributed.start_shards(source.partitions(), cluster) as shards:
            fitted = distributed.fit(shards, settings, source.name_row, Silent())
            self.labels_ = _labels(shards, fitted.centroids)
        self.cluster_centers_ = fitted.centroids
        self.inertia_ = fitted.inertia
        self.n_iter_ = fitted.iterations
        self.n_features_in_ = source.dimension
        _warn_of_empty(int((fitted.sizes == 0).sum()), self.n_clusters)
        return self

    def predict(self, X: Data) -> Int32:
        """Index (n,) of the centroid nearest to each row of `X`; an array is assigned in this process, without Ray.

        Raises:
            InputError: the data is wrong, or has other dimensions than the fitted data.
            NotFittedError: `fit` was not called.
        """
        if not hasattr(self, "cluster_centers_"):
            raise NotFittedError("KMeans is not fitted; call fit first")
        source = _Source(X, self.n_shards)
        if source.dimension != self.n_features_in_:
            raise InputError(f"X has {source.dimension} dimensions, the fitted centroids have {self.n_features_in_}")
        if source.rows == 0:
            return np.empty(0, np.int32)
        if source.array is not None:
            return _checked_labels(LocalShards([Shard(source.array)]), source, self.cluster_centers_)
        cluster = connect()
        with distributed.start_shards(source.partitions(), cluster) as shards:
            return _checked_labels(shards, source, self.cluster_centers_)

    def _settings(self, dimension: int) -> Settings:
        for name in ("n_clusters", "n_init", "max_iter", "n_shards"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise InputError(f"{name}={value!r}: expected an integer of at least 1")
        if self.metric != "euclidean":
            raise InputError(f"metric={self.metric!r}: expected 'euclidean'; normalise the rows to cluster by cosine")
        if not self.tol >= 0:
            raise InputError(f"tol={self.tol!r}: expected a number of at least 0")
        init = _check_init(self.init, (self.n_clusters, dimension))
        return Settings(int(self.n_clusters), init, int(self.n_init), int(self.max_iter), float(self.tol), int(self.seed))


def _check_init(init: Any, shape: tuple[int, int]) -> Any:
    if isinstance(init, str):
        if init not in ("k-means++", "random"):
            raise InputError(f"init={init!r}: expected 'k-means++', 'random' or an array of first centroids")
        return init
    centroids = _to_rows(init, "init").astype(np.float32)
    if centroids.shape != shape:
        raise InputError(f"init has shape {centroids.shape}; expected {shape}, one row per cluster")
    if not (kernels.squared_norms(centroids) <= kernels.LARGEST_SQUARED_NORM).all():
        raise InputError("init holds a NaN, infinite or huge value; expected finite first centroids")
    return centroids


def _to_rows(X: Any, name: str) -> Rows:
    try:
        array = np.asarray(X)
        if array.dtype not in (np.float16, np.float32):
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {type(X).__name__}; expected numbers, an array (n, d)") from None
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name} has shape {array.shape}; expected two dimensions, one vector per row")
    return array


def _checked_labels(shards: Shards, source: _Source, centroids: Float32) -> Int32:
    distributed.check_rows(shards, source.name_row)
    return _labels(shards, centroids)


def _labels(shards: Shards, centroids: Float32) -> Int32:
    return np.concatenate([assignment.labels for assignment in shards.map(Shard.assign, centroids)])


def _warn_of_empty(empty: int, k: int) -> None:
    if empty:
        warnings.warn(f"{empty} of {k} clusters are empty: too few distinct rows", ConvergenceWarning, stacklevel=3)


class _Source:
    """An array or Parquet files, looked at but not yet read; exactly one of `array` and `files` is set."""

    def __init__(self, X: Data, n_shards: int) -> None:
        self._n_shards = n_shards
        self.array: Rows | None = None
        self.files: rows.Files | None = None
        if type(X).__module__.startswith("ray.data"):
            raise InputError(
                "X is a Ray Dataset; expected an array, or Parquet files: write it with write_parquet and give the folder"
            )
        if isinstance(X, (str, Path)) or _is_list_of_paths(X):
            self.files = rows.check_files(rows.list_files(X))
            self.rows, self.dimension = self.files.rows, self.files.dimension
        else:
            self.array = _to_rows(X, "X")
            self.rows, self.dimension = self.array.shape

    def partitions(self) -> Sequence[distributed.Source]:
        """What the shard actors are started with; an array goes into Ray's object store."""
        if self.array is not None:
            return distributed.put_blocks(self.array, self._n_shards)
        assert self.files is not None
        return rows.partition(self.files, self._n_shards)

    def name_row(self, index: int) -> str:
        """How messages call a row, given its global number."""
        return f"X: row {index}" if self.files is None else rows.name_row(self.files, index)


def _is_list_of_paths(X: Any) -> bool:
    return isinstance(X, (list, tuple)) and bool(X) and all(isinstance(path, (str, Path)) for path in X)
