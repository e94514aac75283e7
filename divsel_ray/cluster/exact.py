"""Sums that do not depend on their order: floating-point numbers added as integers.

Two ways, both exact: vectors are first rounded to a common fixed-point grid, so coarse that a float64 holds every partial
sum (`Grid`); non-negative scalars are added up per binary exponent, without any rounding (`exact_parts`).
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
    """Multiples of `2**exponent`: as fine as float64 sums of all rows stay exact, so the same in any order.

    For a million rows of unit vectors the step is 2^-33, far below the resolution of float32 centroids. Float16 rows are
    multiples of 2^-24 already, and rounding leaves up to 500 million of them as they are.
    """

    exponent: int

    @classmethod
    def of(cls, rows: int, largest: float) -> Grid:
        """The grid for so many rows whose absolute values are at most `largest`."""
        spare = _SIGNIFICANT_BITS - max(1, rows).bit_length() - 1
        return cls(math.frexp(largest)[1] - spare)

    def round(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows in float64, on the grid."""
        wide = rows.double()
        if rows.dtype == torch.float16 and self.exponent <= _FLOAT16_STEP:
            return wide
        return wide.mul_(2.0**-self.exponent).round_().mul_(2.0**self.exponent)


def mix(values: Words) -> Words:
    """What SplitMix64 gives in these states: well-spread 64-bit words from any."""
    return finalise(values + np.uint64(0x9E3779B97F4A7C15))


def digest(rows: torch.Tensor, numbers: Int64) -> int:
    """A 64-bit sum over rows of a hash of their bytes and numbers: the same for any partition of the rows.

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
