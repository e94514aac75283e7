"""A two-dimensional map of rows on which rows with similar vectors lie close together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

DIMENSIONS = 50
"""Number of principal components kept before the search for neighbours."""
PERPLEXITY = 30.0
ITERATIONS = 500
FEWEST_ROWS = 50
"""With fewer rows, the map is the first two principal components: there are too few neighbours for t-SNE."""


def project(vectors: NDArray[np.float32], *, directions: bool = False) -> NDArray[np.float32]:
    """Map vectors (n, d), n > 0, to positions (n, 2); the widest direction of the map is horizontal.

    Principal components, then t-SNE (van der Maaten and Hinton 2008) with the Barnes-Hut approximation (van der Maaten 2014),
    initialised with the first two components (Kobak and Berens 2019). Uses a single thread, which fixes the order of sums:
    the same vectors give the same bytes with the same libraries on the same kind of processor.

    Args:
        vectors: finite vectors.
        directions: whether to ignore the lengths of vectors.
    """
    from sklearn.decomposition import PCA

    rows = np.asarray(vectors, np.float32)
    if directions:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    with threadpool_limits(1):
        kept = min(DIMENSIONS, *rows.shape)
        # scikit-learn warns about identical rows, which have no variance to explain.
        with np.errstate(invalid="ignore"):
            reduced = PCA(kept, svd_solver="randomized", random_state=0).fit_transform(rows)
        places = _plane(reduced)
        if len(rows) >= FEWEST_ROWS and np.ptp(places[:, 0]) > 0:
            places = _neighbours(_plane(reduced) if kept < 2 else reduced)
    return _across(places)


def _neighbours(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, max_iter=ITERATIONS, random_state=0, n_jobs=1).fit_transform(rows)


def _plane(reduced: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first two components, with zeros for a missing second one."""
    return np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))


def _across(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rotate so that the first axis is the direction of the largest variance."""
    centred = places - places.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(centred, rowvar=False) if len(places) > 1 else np.eye(2))
    return np.ascontiguousarray((centred @ axes[:, ::-1]).astype(np.float32))
