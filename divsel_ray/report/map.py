"""A map of rows in the plane, by which neighbours of their vectors come to lie side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

DIMENSIONS = 50
"""That principal components leave before neighbours are looked for."""
PERPLEXITY = 30.0
ITERATIONS = 500
FEWEST_ROWS = 50
"""Of fewer rows the two main principal components are the map: they have too few neighbours to embed by."""


def project(vectors: NDArray[np.float32], *, directions: bool = False) -> NDArray[np.float32]:
    """Places (n, 2) of rows with vectors (n, d), n > 0; the widest direction of the map lies across.

    Principal components, then t-SNE (van der Maaten and Hinton 2008) by the Barnes-Hut approximation (van der Maaten 2014),
    begun from the two main components (Kobak and Berens 2019). One thread, so that sums are added in one order: the same
    vectors give the same bytes wherever the same libraries run on the same kind of processor.

    Args:
        vectors: finite.
        directions: whether their lengths mean nothing.
    """
    from sklearn.decomposition import PCA

    rows = np.asarray(vectors, np.float32)
    if directions:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    with threadpool_limits(1):
        kept = min(DIMENSIONS, *rows.shape)
        # Rows that are all the same have no components to explain, of which scikit-learn warns.
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
    """The two main components, zeros where there is no second one."""
    return np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))


def _across(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turned so that the direction of the largest variance is the first axis."""
    centred = places - places.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(centred, rowvar=False) if len(places) > 1 else np.eye(2))
    return np.ascontiguousarray((centred @ axes[:, ::-1]).astype(np.float32))
