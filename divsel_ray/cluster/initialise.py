"""The first centroids: k-means++ (Arthur and Vassilvitskii 2007) and random rows.

Both draw rows by keys `log(u) / weight`, the largest key wins (Efraimidis and Spirakis 2006, A-ES in logarithms): a draw
with probability proportional to the weight. `u` is hashed from (seed, start, step, row number), so each part of the rows
names its best and the best of those is the draw, however the rows are split.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from divsel_ray.cluster.kernels import Float32, Float64, Int64, Rows

_MASK = (1 << 64) - 1


class Draw(NamedTuple):
    """What a draw's random numbers are hashed from."""

    seed: int
    start: int
    step: int


class Sample(NamedTuple):
    """Drawn rows, best key first: keys (m,), global row numbers (m,), rows (m, d) float32."""

    keys: Float64
    indices: Int64
    rows: Float32


def uniforms(draw: Draw, indices: Int64) -> Float64:
    """Numbers in (0, 1), one per global row number, by the SplitMix64 hash (Steele, Lea and Flood 2014)."""
    key = 0
    for part in draw:
        key = _mix(key ^ (part & _MASK))
    mixed = _mix_array(_mix_array(indices.astype(np.uint64)) ^ np.uint64(key))
    return ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix_array(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sample(rows: Rows, weights: Float64, count: int, draw: Draw, first: int = 0) -> Sample:
    """Draw rows without replacement, with probabilities proportional to their weights.

    Args:
        rows: (n, d), a part of all rows.
        weights: (n,) non-negative; rows of weight 0 come last, by row number.
        count: at most so many rows.
        draw: what the random numbers depend on besides the row number.
        first: global number of the first row.
    """
    indices = np.arange(first, first + len(rows), dtype=np.int64)
    with np.errstate(divide="ignore", over="ignore"):
        keys = np.log(uniforms(draw, indices)) / weights
    at = np.flatnonzero(keys == keys.max())[:1] if count == 1 else np.argsort(-keys, kind="stable")[:count]
    return Sample(keys[at], indices[at], rows[at].astype(np.float32))


def merge(parts: list[Sample], count: int) -> Sample:
    """The draw from all rows, given the draws from the parts; equal keys go to the lower row number."""
    whole = Sample(*(np.concatenate([part[i] for part in parts]) for i in range(3)))
    order = np.lexsort((whole.indices, -whole.keys))[:count]
    return Sample(*(field[order] for field in whole))
