"""The array kernels of Lloyd's k-means (Lloyd 1982): assign, accumulate, relocate, finish. NumPy only.

Every kernel answers for a part of the rows so that the answers of all parts combine into the answer for the whole, and
none depends on where the rows were cut:

- labels: a float32 matrix product screens the centroids, and whatever lies within its rounding error of the nearest is
  settled by a float64 distance that is computed row by row. How a BLAS orders its sums therefore never shows.
- sums of float16 rows are exact in float64 (see `accumulate`), and inertia is an exact sum (see `exact_parts`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]
"""Vectors, shape (n, d), float16 or float32."""
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

CHUNK_ELEMENTS = 1 << 20
"""Elements of one temporary array at most: 4 MiB in float32, 8 MiB in float64."""
CACHED_ELEMENTS = 1 << 16
"""The same where only one pass is made over the rows, so that the temporary stays in a core's cache."""
LARGEST_SQUARED_NORM = 1e36
"""Rows beyond it would overflow the float32 matrix product."""
_UNIT_ROUNDOFF = 2.0**-24
_LOWEST_EXPONENT = -150
_EXPONENTS = 320


class Assignment(NamedTuple):
    """The nearest centroid of each row: labels (n,) and squared Euclidean distances (n,)."""

    labels: Int32
    squared_distances: Float32


class Farthest(NamedTuple):
    """Rows far from their centroids, farthest first.

    Attributes: squared distances (m,), global row numbers (m,), labels (m,) and the rows themselves (m, d).
    """

    squared_distances: Float32
    indices: Int64
    labels: Int32
    rows: Rows


def chunks(n: int, width: int, elements: int) -> Iterator[slice]:
    """Consecutive slices of `n` rows, each of at most `elements` elements when a row has `width` of them."""
    step = max(1, elements // max(1, width))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def pair_distances(rows: Rows, others: Rows) -> Float64:
    """Squared Euclidean distance of each row to its partner, or of all rows to one vector, in float64.

    A row's distance is the same bits whatever rows stand beside it.

    Args:
        rows: (n, d).
        others: (n, d), or (d,) to measure every row against one vector.

    Returns:
        (n,) squared distances.
    """
    result = np.empty(len(rows), np.float64)
    for part in chunks(len(rows), rows.shape[1], CACHED_ELEMENTS):
        partner = others if others.ndim == 1 else others[part]
        difference = rows[part].astype(np.float64) - partner
        result[part] = np.square(difference, out=difference).sum(axis=1)
    return result


def squared_norms(rows: Rows) -> Float64:
    """Squared Euclidean norms (n,) of rows (n, d), in float64."""
    return pair_distances(rows, np.zeros(rows.shape[1]))


def assign(rows: Rows, centroids: Float32) -> Assignment:
    """The nearest centroid of every row; ties go to the lowest index.

    Args:
        rows: (n, d) finite vectors, squared norms at most `LARGEST_SQUARED_NORM`.
        centroids: (k, d).

    Returns:
        labels (n,) int32 and squared distances (n,) float32.
    """
    labels = np.empty(len(rows), np.int32)
    centroid_norms = squared_norms(centroids)
    for part in chunks(len(rows), max(centroids.shape), CHUNK_ELEMENTS):
        labels[part] = _nearest(rows[part].astype(np.float32), centroids, centroid_norms)
    own = np.empty(len(rows), np.float32)
    for part in chunks(len(rows), rows.shape[1], CHUNK_ELEMENTS):
        own[part] = pair_distances(rows[part], centroids[labels[part]])
    return Assignment(labels, own)


def _nearest(rows: Float32, centroids: Float32, centroid_norms: Float64) -> Int32:
    scores = rows @ centroids.T
    scores *= -2
    scores += centroid_norms.astype(np.float32)
    labels = scores.argmin(axis=1).astype(np.int32)
    reach = scores[np.arange(len(rows)), labels] + 2 * _rounding_error(rows, centroid_norms)
    candidates = scores <= np.nextafter(reach.astype(np.float32), np.float32(np.inf))[:, None]
    unsettled = np.flatnonzero(np.count_nonzero(candidates, axis=1) > 1)
    for part in chunks(len(unsettled), centroids.shape[0], CHUNK_ELEMENTS):
        at = unsettled[part]
        labels[at] = _settle(rows[at], centroids, candidates[at])
    return labels


def _rounding_error(rows: Float32, centroid_norms: Float64) -> Float64:
    """Bound on the error of `|c|^2 - 2 x.c` in float32, whatever the order of summation (Higham 2002, Eq. 3.5)."""
    reach = np.sqrt(squared_norms(rows)) + math.sqrt(centroid_norms.max())
    return (rows.shape[1] + 8) * (_UNIT_ROUNDOFF * reach**2 + 2.0**-126)


def _settle(rows: Float32, centroids: Float32, candidates: npt.NDArray[np.bool_]) -> Int32:
    at, centroid = np.nonzero(candidates)
    distances = np.empty(len(at), np.float64)
    for part in chunks(len(at), rows.shape[1], CHUNK_ELEMENTS):
        distances[part] = pair_distances(rows[at[part]], centroids[centroid[part]])
    order = np.lexsort((centroid, distances, at))
    firsts = np.flatnonzero(np.diff(at, prepend=-1))
    return centroid[order][firsts].astype(np.int32)


def accumulate(rows: Rows, labels: Int32, k: int) -> tuple[Float64, Int64]:
    """Sum and number of the rows of each cluster.

    For float16 rows the sums are exact, hence the same bits in any order and for any partition of the rows: a float16 is
    a multiple of 2^-24, so a float64 holds every partial sum while rows x largest absolute value stays below 2^29 (over
    500 million rows of unit vectors). Sums of float32 rows are rounded and follow the order of the rows.

    Args:
        rows: (n, d).
        labels: (n,) in [0, k).
        k: number of clusters.

    Returns:
        sums (k, d) float64 and counts (k,) int64.
    """
    sums = np.zeros((k, rows.shape[1]), np.float64)
    for part in chunks(len(rows), rows.shape[1], CHUNK_ELEMENTS):
        order = np.argsort(labels[part], kind="stable")
        present, firsts = np.unique(labels[part][order], return_index=True)
        sums[present] += np.add.reduceat(rows[part][order].astype(np.float64), firsts, axis=0)
    return sums, np.bincount(labels, minlength=k).astype(np.int64)


def farthest(rows: Rows, assignment: Assignment, count: int, first: int = 0) -> Farthest:
    """The rows farthest from their centroids; rows that lie on their centroid are never among them.

    Args:
        rows: (n, d).
        assignment: labels and squared distances of these rows.
        count: at most so many rows.
        first: global number of the first row.
    """
    at = np.argsort(-assignment.squared_distances, kind="stable")[:count]
    at = at[assignment.squared_distances[at] > 0]
    return Farthest(assignment.squared_distances[at], at.astype(np.int64) + first, assignment.labels[at], rows[at])


def merge_farthest(parts: list[Farthest], count: int) -> Farthest:
    """The farthest rows of all parts; equal distances go to the lower row number."""
    whole = Farthest(*(np.concatenate([part[i] for part in parts]) for i in range(4)))
    order = np.lexsort((whole.indices, -whole.squared_distances))[:count]
    return Farthest(*(field[order] for field in whole))


def relocate(sums: Float64, counts: Int64, far: Farthest) -> tuple[Float64, Int64]:
    """Give each empty cluster one of the farthest rows, which leaves its old cluster (scikit-learn's rule).

    Args:
        sums: (k, d) sums of the clusters' rows.
        counts: (k,) rows per cluster.
        far: farthest rows, best first; the i-th goes to the i-th empty cluster. With too few, some clusters stay empty.

    Returns:
        new sums (k, d) and counts (k,).
    """
    sums, counts = sums.copy(), counts.copy()
    empty = np.flatnonzero(counts == 0)
    for cluster, label, row in zip(empty, far.labels, far.rows, strict=False):
        sums[label] -= row
        counts[label] -= 1
        sums[cluster] = row
        counts[cluster] = 1
    return sums, counts


def finish(sums: Float64, counts: Int64, centroids: Float32) -> Float32:
    """New centroids (k, d) float32: sums / counts. A cluster without rows keeps its centroid, it never becomes zero."""
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, centroids).astype(np.float32)


def exact_parts(values: Float32 | Float64) -> Int64:
    """Non-negative numbers as one integer per binary exponent; parts add up exactly, in any order, to one total.

    A float32 is a 24-bit integer times a power of two, so int64 counters hold half a trillion of them. A float64 is
    split into two float32 (48 of its 53 bits).
    """
    parts = np.zeros(_EXPONENTS, np.int64)
    high = values.astype(np.float32)
    for piece in (high, (values - high).astype(np.float32)):
        mantissa, exponent = np.frexp(piece)
        np.add.at(parts, exponent - _LOWEST_EXPONENT, np.rint(mantissa.astype(np.float64) * 2**24).astype(np.int64))
    return parts


def exact_total(parts: Int64) -> float:
    """The sum that `exact_parts` (or a sum of several) stands for, rounded once."""
    whole = sum(int(part) << power for power, part in enumerate(parts))
    return math.ldexp(float(whole), _LOWEST_EXPONENT - 24)
