"""Semantic duplicates: of rows in one cluster with almost equal vectors, one is kept.

After SemDeDup (Abbas et al. 2023, arXiv 2303.09540), which searches for pairs within k-means clusters and keeps from each
group the row farthest from its centroid. Here rows are visited in order of quality, best first, and a row is removed exactly
if its cosine with a kept row reaches the threshold. So the best of near copies is kept, every removed row has a kept twin,
and no two kept rows of a cluster are as similar as the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-6
"""Tolerance below the threshold for cosines in float32, so that equal vectors reach 1."""
_BLOCK = 1024
_KEPT_BLOCK = 8192


@dataclass(frozen=True)
class Duplicates:
    """The rows to remove.

    Attributes:
        removed: (r,) int64 positions, ascending.
        kept: (r,) int64 position of the most similar kept row that is no worse, for each.
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

    Rows without quality come last, and ties are broken by row id; the order of rows and the rows of other clusters do not
    matter. Time is at most m^2 d / 2 multiplications for a cluster of m rows; memory in addition to the arguments is 4 m d
    bytes for the largest cluster and 40 MB for blocks.

    Args:
        vectors: (n, d) float16 or float32, normalised here; a zero vector is similar to no other.
        cluster: (n,) cluster of each row.
        row_ids: (n,) bytes, distinct.
        quality: (n,) NaN where unknown.
        threshold: minimum cosine of duplicates, in (0, 1].
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
    """The rows normalised to unit length in float32 (float16 vectors miss it by up to 0.0005); zero rows are unchanged."""
    units = vectors.astype(np.float32)
    lengths = np.linalg.norm(units, axis=1, keepdims=True)
    units /= np.where(lengths > 0, lengths, 1)
    return units


def _pieces(kept: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (kept[start : start + _KEPT_BLOCK] for start in range(0, len(kept), _KEPT_BLOCK))


def _raise_to(
    cosine: NDArray[np.float32], twin: NDArray[np.int64], product: NDArray[np.float32], kept: NDArray[np.int64]
) -> None:
    """Record for each row of a block the most similar kept row so far; among equals the better one."""
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
    """Decide a block row by row, best first: each kept row is compared with those after it."""
    product = units @ units.T
    for row in range(len(units)):
        stays[row] = cosine[row] < threshold
        if stays[row]:
            closer = np.flatnonzero(product[row, row + 1 :] > cosine[row + 1 :]) + row + 1
            cosine[closer], twin[closer] = product[row, closer], start + row
