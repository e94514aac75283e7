"""k-means with scikit-learn's interface: `KMeans(n_clusters=64).fit(X)`, on this machine or on a Ray cluster."""

from __future__ import annotations

import contextlib
import numbers
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from divsel_ray.cluster import balance, distributed, kernels, lloyd
from divsel_ray.cluster.actors import Holding, RayShards
from divsel_ray.cluster.coarsen import merge_tree
from divsel_ray.cluster.datasource import Data, DataSource, open_data, to_rows
from divsel_ray.cluster.exact import Float32
from divsel_ray.cluster.journal import Journal
from divsel_ray.cluster.kernels import Int32
from divsel_ray.cluster.lloyd import Fit, Settings
from divsel_ray.cluster.rows import normalise
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import Geometry, LocalShards, Shards
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress, Silent, Terminal
from divsel_ray.resources import Cluster, connect

_NAME = "k-means"
LOCAL_ELEMENTS = 1 << 21
"""Size of an array (in numbers) that takes less time to cluster than actors take to start."""


class KMeans(ClusterMixin, BaseEstimator):
    """Lloyd's k-means (Lloyd 1982), with the rows spread over Ray actors.

    The result depends, byte for byte, only on the data, the parameters and the seed; never on `n_shards`, on `mode`, on the
    number of actors or nodes, or on whether any of them were lost during the fit.

    Args:
        n_clusters: number of clusters k.
        init: "k-means++" (Arthur and Vassilvitskii 2007), "k-means||" (Bahmani et al. 2012; few passes over the rows),
            "random", or an array (k, d) of initial centroids.
        n_init: number of starts; the one with the lowest inertia wins. An array `init` makes one start.
        max_iter: maximum number of iterations per start.
        tol: stop when the squared movement of all centroids is at most tol x the mean variance of the features.
        metric: "euclidean", or "cosine": rows and centroids are scaled to unit length (Dhillon and Modha 2001).
        progressive: run the first iterations on growing nested samples of the rows, the last ones on all rows.
        fit_rows: fit on a hashed sample of about this many rows, then assign all; None, or fewer than k, fits on all rows.
        max_size: maximum number of rows per cluster (`balance.balanced_fit`); None for no limit. `predict` ignores it.
        seed: seed of all random draws.
        n_shards: number of partitions of the rows, and upper limit on actors. None: as many as the cluster has room for
            (`distributed.default_shards`); a small array is then clustered in this process.
        mode: "memory" keeps the rows, "streaming" rereads Parquet files on every pass, "auto" decides by the available memory.
        checkpoint: file that keeps the last iteration, so that a killed fit resumes when it is called again.
        verbose: print how rows are held, and show progress.

    Attributes:
        cluster_centers_: (k, d) float32.
        labels_: (n,) int32 cluster of each row of the fitted data: the nearest centroid, or with `max_size` the nearest one
            with room for the row.
        inertia_: sum of squared distances of the rows to their centroids.
        n_iter_: iterations of the best start over all rows.
        n_features_in_: number of features d.
        history_: every iteration of the best start, see `lloyd.Step`.

    Example:
        >>> from divsel_ray import KMeans
        >>> KMeans(n_clusters=2).fit([[0, 0], [0, 1], [9, 9], [9, 8]]).labels_
        array([1, 1, 0, 0], dtype=int32)
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
        progressive: bool = False,
        fit_rows: int | None = None,
        max_size: int | None = None,
        seed: int = 0,
        n_shards: int | None = None,
        mode: str = "auto",
        checkpoint: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.metric = metric
        self.progressive = progressive
        self.fit_rows = fit_rows
        self.max_size = max_size
        self.seed = seed
        self.n_shards = n_shards
        self.mode = mode
        self.checkpoint = checkpoint
        self.verbose = verbose

    def fit(self, X: Data, y: None = None) -> KMeans:
        """Cluster the rows of `X`. Starts a local Ray if one is needed and none is running.

        Raises:
            InputError: a parameter or the data is invalid; there are fewer rows than clusters; a row is not finite, or, with
                metric "cosine", of length zero.
        """
        self._check_parameters()
        source = open_data(X)
        settings = self._settings(source)
        with self._told() as progress, self._open(source, progress, local=self.n_shards is None) as held:
            geometry = self._look(held, source)
            journal = self._journal(source, settings, geometry)
            if isinstance(held, RayShards):
                fitted = distributed.fit(held, settings, geometry, progress, journal)
            else:
                fitted = distributed.run_fit(held, settings, geometry, journal, progress.advance)
            self.labels_ = _labels(held, fitted)
            progress.finish(_NAME, f"{settings.k:,} clusters, inertia {fitted.inertia:.6g}", cached=False)
        self.cluster_centers_ = fitted.centroids
        self.inertia_ = fitted.inertia
        self.n_iter_ = fitted.iterations
        self.n_features_in_ = source.dimension
        self.history_ = list(fitted.history)
        # The centroids that predict compares with, and their labels: after `coarsen`, still the fine centroids.
        self._fine = (fitted.centroids, np.arange(len(fitted.centroids), dtype=np.int32))
        self._are_means = fitted.converged and settings.share == 1 and settings.max_size is None
        _warn_of_empty(int((fitted.sizes == 0).sum()), self.n_clusters)
        return self

    def predict(self, X: Data) -> Int32:
        """Index (n,) of the centroid nearest to each row of `X`.

        Raises:
            InputError: the data is invalid, or its dimension differs from that of the fitted data.
            NotFittedError: `fit` was not called.
        """
        if not hasattr(self, "cluster_centers_"):
            raise NotFittedError("KMeans is not fitted; call fit first")
        source = open_data(X)
        if source.dimension != self.n_features_in_:
            raise InputError(f"X: has {source.dimension} dimensions; the fitted centroids have {self.n_features_in_}")
        if source.rows == 0:
            return np.empty(0, np.int32)
        with self._open(source, Silent(), local=True, coordinated=False) as held:
            self._look(held, source)
            centroids, labels = self._fine
            return labels[np.concatenate(held.map(Shard.labels, centroids))]

    def coarsen(self, n_clusters: int) -> KMeans:
        """Return a fitted model of fewer clusters, each a union of this model's (Ward 1963, see `coarsen.merge_tree`).

        One fine fit thus yields any number of nested resolutions without reading the rows again. If the fine centroids are not
        the means of their rows (the fit did not converge, or used a sample), centroids and inertia are approximate, and a
        ConvergenceWarning is issued.

        Args:
            n_clusters: 1 to the number of this model's clusters.

        Raises:
            InputError: the model has fewer clusters, or its centroids are not means (metric "cosine").
            NotFittedError: `fit` was not called.
        """
        if not hasattr(self, "cluster_centers_"):
            raise NotFittedError("KMeans is not fitted; call fit first")
        if self.metric == "cosine":
            raise InputError("coarsen: merges means, which the centroids of metric='cosine' are not; fit with metric='euclidean'")
        if not self._are_means:
            warnings.warn(
                "the centroids are not the means of their rows, so the coarser centroids and inertia_ are approximate",
                ConvergenceWarning,
                stacklevel=2,
            )
        tree = merge_tree(self.cluster_centers_, np.bincount(self.labels_, minlength=len(self.cluster_centers_)))
        cut = tree.cut(n_clusters)
        coarse: KMeans = clone(self).set_params(n_clusters=n_clusters)
        coarse.cluster_centers_, coarse.labels_ = cut.centroids, cut.labels[self.labels_]
        coarse.inertia_ = self.inertia_ + cut.added_inertia
        coarse.n_iter_, coarse.n_features_in_, coarse.history_ = self.n_iter_, self.n_features_in_, self.history_
        coarse._fine, coarse._are_means = (self._fine[0], cut.labels[self._fine[1]]), self._are_means
        return coarse

    @contextlib.contextmanager
    def _told(self) -> Iterator[Progress]:
        """Progress of a fit: shown on the terminal if verbose, else silent."""
        if not self.verbose:
            yield Silent()
            return
        with Terminal(Console(stderr=True)) as progress:
            progress.start(_NAME)
            yield progress

    @contextlib.contextmanager
    def _open(self, source: DataSource, progress: Progress, *, local: bool, coordinated: bool = True) -> Iterator[Shards]:
        """Open the rows: in this process if `local` and they are few, else in actors."""
        cosine = self.metric == "cosine"
        if local and source.array is not None and source.rows * source.dimension <= LOCAL_ELEMENTS:
            yield LocalShards([Shard(normalise(source.array) if cosine else source.array)])
            return
        cluster = connect()
        holding = self._holding(source, cluster, progress)
        parts = self.n_shards or distributed.default_shards(source.rows, holding.workers, cluster)
        with distributed.start_shards(source.partitions(parts), cluster, holding, coordinated=coordinated) as held:
            yield held

    def _look(self, shards: Shards, source: DataSource) -> Geometry:
        directions = self.metric == "cosine"
        return distributed.check_rows(shards, source.dimension, source.name_row, directions=directions)

    def _holding(self, source: DataSource, cluster: Cluster, progress: Progress) -> Holding:
        normalised = self.metric == "cosine"
        if source.files is None:
            return Holding(normalised=normalised)
        plan = distributed.plan_memory(source.files, cluster, cast(distributed.Mode, self.mode))
        progress.note(plan.reason)
        return Holding(plan.streamed, normalised)

    def _check_parameters(self) -> None:
        for name in ("n_clusters", "n_init", "max_iter"):
            _check_count(name, getattr(self, name))
        for name in ("fit_rows", "max_size", "n_shards"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        _check_choice("metric", self.metric, ("euclidean", "cosine"))
        _check_choice("mode", self.mode, ("auto", "memory", "streaming"))
        if isinstance(self.init, str):
            _check_choice("init", self.init, ("k-means++", "k-means||", "random"), " or an array of initial centroids")
        if not (isinstance(self.tol, numbers.Real) and self.tol >= 0):
            raise InputError(f"tol={self.tol!r}: expected a number of at least 0")
        if not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise InputError(f"seed={self.seed!r}: expected an integer of at least 0")

    def _settings(self, source: DataSource) -> Settings:
        k = int(self.n_clusters)
        if k > source.rows:
            raise distributed.too_many_clusters(k, source.rows)
        if self.max_size is not None and self.max_size * k < source.rows:
            raise InputError(f"max_size={self.max_size}: {k} clusters of that size have no room for {source.rows} rows")
        init: str | Float32 = self.init
        if not isinstance(init, str):
            init = _first_centroids(init, (k, source.dimension), directions=self.metric == "cosine")
        if self.mode == "streaming" and source.files is None:
            raise InputError("mode='streaming': reads Parquet files, but X is in memory; use mode='auto' or pass a folder")
        return Settings(
            k=k,
            init=cast(lloyd.Init, init),
            n_init=int(self.n_init),
            max_iter=int(self.max_iter),
            tol=float(self.tol),
            seed=int(self.seed),
            spherical=self.metric == "cosine",
            progressive=bool(self.progressive),
            share=lloyd.share_of(self.fit_rows, source.rows),
            max_size=self.max_size,
        )

    def _journal(self, source: DataSource, settings: Settings, geometry: Geometry) -> Journal | None:
        if self.checkpoint is None:
            return None
        names = source.files.paths if source.files else ()
        return Journal(self.checkpoint, lloyd.identity(settings, geometry, names))


def _labels(shards: Shards, fitted: Fit) -> Int32:
    if fitted.thresholds is None:
        return np.concatenate(shards.map(Shard.labels, fitted.centroids))
    assigned = shards.map(balance.balanced_labels, fitted.centroids, fitted.thresholds)
    return np.concatenate([assignment.labels for assignment in assigned])


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name}={value!r}: expected an integer of at least 1")


def _check_choice(name: str, value: Any, choices: tuple[str, ...], also: str = "") -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r}: expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}{also}")


def _first_centroids(init: Any, shape: tuple[int, int], *, directions: bool) -> Float32:
    rows = to_rows(init, "init")
    centroids = rows.astype(np.float32) if isinstance(rows, np.ndarray) else rows.float().numpy()
    if centroids.shape != shape:
        raise InputError(f"init: shape {centroids.shape}; expected {shape}, one row per cluster")
    if not (kernels.squared_norms(centroids) <= kernels.LARGEST_SQUARED_NORM).all():
        raise InputError("init: contains a NaN, infinite or huge value; expected finite centroids")
    if directions and not centroids.any(axis=1).all():
        raise InputError("init: contains a vector of zeros, which has no direction; replace it or use metric='euclidean'")
    return cast(Float32, normalise(centroids)) if directions else centroids


def _warn_of_empty(empty: int, k: int) -> None:
    if empty:
        warnings.warn(f"{empty} of {k} clusters are empty: too few distinct rows", ConvergenceWarning, stacklevel=3)
