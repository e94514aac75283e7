"""Semantic duplicates: of rows of one cluster whose vectors are almost the same, one stays.

After SemDeDup (Abbas et al. 2023, arXiv 2303.09540), which looks for pairs inside the clusters of a k-means and keeps of
each group the row farthest from its centroid. Here rows are taken in order of quality, best first, and a row goes just when
its cosine to a row that stays reaches the threshold. So the best of near copies stays, every row that goes has a twin that
stays, and no two rows of a cluster that stay are as alike as the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-6
"""A cosine in float32 counts as reaching the threshold from here below it, so that equal vectors reach 1."""
_BLOCK = 1024
_KEPT_BLOCK = 8192


@dataclass(frozen=True)
class Duplicates:
    """The rows that go.

    Attributes:
        removed: (r,) int64 positions, ascending.
        kept: (r,) int64 position of the most alike row that stays and is not worse, for each.
        cosine: (r,) float32 cosine between the two.
    """

    removed: NDArray[np.int64]
    kept: NDArray[np.int64]
    cosine: NDArray[np.float32]


def semantic_duplicates(
    vectors: NDArray[np.floating],
    cluster: NDArray[np.integer],
    row_ids: NDArray[np.bytes_],
    quality: NDArray[np.floating],
    threshold: float,
) -> Duplicates:
    """Find semantic duplicates, cluster by cluster.

    Rows without quality come after all others, and ties go by row id; the order and number of other clusters' rows change
    nothing. Time is at most m^2 d / 2 multiplications for a cluster of m rows; memory beside the arguments is 4 m d bytes
    for the largest cluster and 40 MB for blocks.

    Args:
        vectors: (n, d) float16 or float32, brought to unit length here; a zero vector is like no other.
        cluster: (n,) cluster of each row.
        row_ids: (n,) bytes, distinct.
        quality: (n,) NaN where unknown.
        threshold: least cosine of duplicates, in (0, 1].
    """
    best_first = np.lexsort((row_ids, -quality, np.isnan(quality), cluster))
    ends = np.flatnonzero(np.diff(cluster[best_first])) + 1
    found = [_inside(vectors, rows, threshold) for rows in np.split(best_first, ends) if len(rows) > 1]
    removed = np.concatenate([np.empty(0, np.int64), *(rows for rows, _, _ in found)])
    kept = np.concatenate([np.empty(0, np.int64), *(rows for _, rows, _ in found)])
    cosine = np.concatenate([np.empty(0, np.float32), *(values for _, _, values in found)])
    order = np.argsort(removed)
    return Duplicates(removed[order], kept[order], cosine[order])


def _inside(
    vectors: NDArray[np.floating], rows: NDArray[np.int64], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(removed, kept, cosine) among the rows of one cluster, best first."""
    units = unit_vectors(vectors[rows])
    stays, twin = np.ones(len(rows), dtype=bool), np.full(len(rows), -1)
    cosine = np.full(len(rows), -np.inf, dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(rows)))
        for kept in _pieces(np.flatnonzero(stays[:start])):
            _raise_to(cosine[block], twin[block], units[block] @ units[kept].T, kept)
        _settle(units[block], stays[block], twin[block], cosine[block], start, threshold - ROUNDING)
    going = np.flatnonzero(~stays)
    return rows[going], rows[twin[going]], np.minimum(cosine[going], 1)


def unit_vectors(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """The rows brought to unit length in float32 (float16 vectors miss it by up to 0.0005), zero rows left as they are."""
    units = vectors.astype(np.float32)
    lengths = np.linalg.norm(units, axis=1, keepdims=True)
    units /= np.where(lengths > 0, lengths, 1)
    return units


def _pieces(kept: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (kept[start : start + _KEPT_BLOCK] for start in range(0, len(kept), _KEPT_BLOCK))


def _raise_to(
    cosine: NDArray[np.float32], twin: NDArray[np.int64], product: NDArray[np.float32], kept: NDArray[np.int64]
) -> None:
    """Note for each row of a block the most alike kept row so far; of equals the better one stands."""
    best = product.argmax(axis=1)
    value = product[np.arange(len(product)), best]
    closer = value > cosine
    cosine[closer], twin[closer] = value[closer], kept[best[closer]]


def _settle(
    units: NDArray[np.float32],
    stays: NDArray[np.bool_],
    twin: NDArray[np.int64],
    cosine: NDArray[np.float32],
    start: int,
    threshold: float,
) -> None:
    """Decide a block row by row, best first: each that stays is compared with those after it."""
    product = units @ units.T
    for row in range(len(units)):
        stays[row] = cosine[row] < threshold
        if stays[row]:
            closer = np.flatnonzero(product[row, row + 1 :] > cosine[row + 1 :]) + row + 1
            cosine[closer], twin[closer] = product[row, closer], start + row
