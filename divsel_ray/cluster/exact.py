"""Sums that do not depend on their order: floating-point numbers added as integers.

Two ways, both exact: vectors are first rounded to a common fixed-point grid, coarse enough for a float64 to represent every
partial sum (`Grid`); non-negative scalars are added up per binary exponent, without any rounding (`exact_parts`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from divsel_ray.data.hashing import finalise

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_LOWEST_EXPONENT = -150
_EXPONENTS = 320
_SIGNIFICANT_BITS = 53
_FLOAT16_STEP = -24
"""Every float16 is a multiple of 2**-24."""


@dataclass(frozen=True)
class Grid:
    """Multiples of `2**exponent`: the finest grid on which float64 sums of all rows are exact, so the same in any order.

    For a million unit vectors the step is 2^-33, far below the resolution of float32 centroids. Float16 rows are multiples
    of 2^-24 already, and rounding leaves up to 500 million of them unchanged.
    """

    exponent: int

    @classmethod
    def of(cls, rows: int, largest: float) -> Grid:
        """The grid for `rows` rows whose absolute values are at most `largest`."""
        spare = _SIGNIFICANT_BITS - max(1, rows).bit_length() - 1
        return cls(math.frexp(largest)[1] - spare)

    def round(self, rows: torch.Tensor) -> torch.Tensor:
        """Round rows to the grid, in float64."""
        wide = rows.double()
        if rows.dtype == torch.float16 and self.exponent <= _FLOAT16_STEP:
            return wide
        return wide.mul_(2.0**-self.exponent).round_().mul_(2.0**self.exponent)


def mix(values: Words) -> Words:
    """Outputs of SplitMix64 in these states: well-distributed 64-bit words from any input."""
    return finalise(values + np.uint64(0x9E3779B97F4A7C15))


def digest(rows: torch.Tensor, numbers: Int64) -> int:
    """Sum a 64-bit hash of each row's bytes and number: the same for any partition of the rows.

    Args:
        rows: (n, d) on a CPU.
        numbers: (n,) global row numbers.
    """
    stored = rows.contiguous().view(torch.uint8).numpy()
    padded = np.pad(stored, ((0, 0), (0, -stored.shape[1] % 8))).view(np.uint64)
    factors = mix(np.arange(padded.shape[1], dtype=np.uint64)) | np.uint64(1)
    hashed = mix((padded * factors).sum(axis=1, dtype=np.uint64) ^ mix(numbers.astype(np.uint64)))
    return int(hashed.sum(dtype=np.uint64))


def exact_parts(values: Float32 | Float64) -> Int64:
    """Split non-negative numbers into one integer per binary exponent; parts add up exactly, in any order, to one total.

    A float32 is a 24-bit integer times a power of two, so int64 counters have room for half a trillion of them. A float64
    is split into two float32 (48 of its 53 bits).
    """
    parts = np.zeros(_EXPONENTS, np.int64)
    high = values.astype(np.float32)
    for piece in (high, (values - high).astype(np.float32)):
        mantissa, exponent = np.frexp(piece)
        np.add.at(parts, exponent - _LOWEST_EXPONENT, np.rint(mantissa.astype(np.float64) * 2**24).astype(np.int64))
    return parts


def exact_total(parts: Int64) -> float:
    """The sum that `exact_parts` (or the sum of several) represents, rounded once."""
    whole = sum(int(part) << power for power, part in enumerate(parts))
    return math.ldexp(float(whole), _LOWEST_EXPONENT - 24)
