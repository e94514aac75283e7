"""Half squared distances by one matrix product, in the fastest available precision, with a bound on their error.

A row `x` and a centroid `c` are extended by four columns with their halved squared norms, so that one product yields
`|x|^2/2 - x.c + |c|^2/2`. The product only screens: callers keep every centroid that the error bound does not rule out, and
settle these exactly (`kernels.settle`). The precision of the screen therefore affects how long an assignment takes, never
its result.
"""

from __future__ import annotations

import copy
import functools
import math
import platform

import numpy as np
import torch

from divsel_ray.cluster.exact import Float32, Float64, Int64

PRODUCT_BYTES = 1 << 22
"""Largest size of a product on a CPU, so that it stays in or near a core's second-level cache."""
DEVICE_BYTES = 1 << 29
"""The same on a GPU, where few large products are best."""
_COLUMNS = 4
_TILE = 32
"""Matrix units process whole tiles; zero columns pad the last one."""
_LARGEST_PRODUCT = 2.0**14
"""Products are scaled to stay below it, in the upper part of float16's range."""
_LEAST_NORMAL = 2.0**-14
_SMALLEST = 2.0**-30
"""Smaller norms are scaled as if they were this large, so that float32 does not overflow."""
_HALF_ROUNDOFF = 2.0**-11
_ROUNDOFF = {torch.float16: _HALF_ROUNDOFF, torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@functools.cache
def screening_type(device: str) -> torch.dtype:
    """float16 if the hardware multiplies it fast, keeps subnormal numbers and sums in float32; else float32."""
    if device == "cpu" and not _has_fast_halves():
        return _single_type(device)
    if device != "cpu":
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    ones = torch.ones(_TILE, 4096, dtype=torch.float16, device=device)
    large = ones.clone()
    large[:, 0] = 2048
    # 2048 + 1 is 2048 in float16, so a sum in that type stops at once; 2^-24 is the smallest subnormal.
    summed = (torch.mm(large, ones.T) == 2048 + 4096).all()
    subnormal = (torch.mm(ones * 2.0**-24, ones.T * 2.0**8) == 2.0**-4).all()
    return torch.float16 if bool(summed & subnormal) else _single_type(device)


def _has_fast_halves() -> bool:
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    return platform.machine() in ("x86_64", "AMD64") and known()


def _single_type(device: str) -> torch.dtype:
    """float32, or float64 if a setting of PyTorch or oneDNN lets float32 products use shorter numbers."""
    ones = torch.ones(_TILE, _TILE, device=device)
    finer = ones + torch.eye(_TILE, device=device) * 2.0**-20
    return torch.float32 if bool((torch.mm(finer, ones) == _TILE + 2.0**-20).all()) else torch.float64


class Screen:
    """Centroids prepared for multiplication with rows.

    Args:
        centroids: (k, d).
        centroid_norms: (k,) squared norms.
        largest_norm: upper bound of the rows' norms.
        rows_type: floating-point type of the rows.
        device: device of the rows.
        kind: precision of the products, by default `screening_type`.

    Attributes:
        kind: see above.
        batch: number of rows to multiply at a time.
    """

    def __init__(
        self,
        centroids: Float32,
        centroid_norms: Float64,
        largest_norm: float,
        rows_type: torch.dtype,
        device: torch.device,
        kind: torch.dtype | None = None,
    ) -> None:
        self.kind, self._rows_type = kind or screening_type(device.type), rows_type
        self._largest = largest_norm
        # Means are no longer than the longest row, so centroids may later be replaced by means.
        self._reach = largest_norm + max(largest_norm, math.sqrt(centroid_norms.max(initial=0.0)))
        half = self.kind == torch.float16
        # Float16 rows are left unchanged if possible, else scaled up, which is exact.
        unit = _power(1 / max(largest_norm, _SMALLEST)) if half else 1.0
        self._row_scale = max(unit, 1.0) if rows_type == torch.float16 else unit
        self._scale = _power(2 * _LARGEST_PRODUCT / max(self._reach, _SMALLEST) ** 2) if half else 1.0
        # Bounds are stored in float32, whatever the precision of the products.
        self._slack = max(_ROUNDOFF[self.kind], _ROUNDOFF[torch.float32])
        k, self._dimension = centroids.shape
        columns = self._dimension + _COLUMNS
        width = -(-columns // _TILE) * _TILE if half else columns
        self._set(torch.zeros(k, width, dtype=self.kind, device=device), np.zeros(k))
        self.replace(np.arange(k), centroids, centroid_norms)

    def _set(self, matrix: torch.Tensor, lost: Float64) -> None:
        self._matrix, self._lost = matrix, lost
        k, width = matrix.shape
        size = PRODUCT_BYTES if matrix.device.type == "cpu" else DEVICE_BYTES
        self.batch = max(1, size // self.kind.itemsize // max(k, width))
        self._padded: torch.Tensor | None = None
        self._extended = torch.zeros(0, width, dtype=self.kind, device=matrix.device)

    def finer(self, centroids: Float32, centroid_norms: Float64) -> Screen:
        """The same centroids in the next higher precision, for rows that this one cannot decide."""
        kind = torch.float32 if self.kind == torch.float16 else torch.float64
        return Screen(centroids, centroid_norms, self._largest, self._rows_type, self._matrix.device, kind)

    def takes(self, centroid_norms: Float64) -> bool:
        """Whether centroids with these squared norms may replace others."""
        return math.sqrt(centroid_norms.max(initial=0.0)) <= self._reach - self._largest

    def replace(self, at: Int64, centroids: Float32, centroid_norms: Float64) -> None:
        """Replace the centroids at these positions (m,) by others (m, d), if `takes` allows it."""
        d, place = self._dimension, torch.from_numpy(at).to(self._matrix.device)
        scaled = torch.from_numpy(centroids.astype(np.float64) * (self._scale / self._row_scale))
        lines = torch.zeros(len(at), self._matrix.shape[1], dtype=self.kind)
        lines[:, :d] = -scaled
        lines[:, d : d + 2] = _split(torch.from_numpy(centroid_norms) * (self._scale / 2), self.kind)
        lines[:, d + 2 : d + 4] = 1
        self._lost[at] = (lines[:, :d].double() + scaled).square_().sum(dim=1).sqrt().numpy()
        self._matrix[place] = lines.to(self._matrix.device)
        self._padded = None
        self._absolute = self._error() / self._scale

    def part(self, at: Int64) -> Screen:
        """The screen of some of the centroids, by their positions (m,)."""
        chosen = copy.copy(self)
        chosen._set(self._matrix[torch.from_numpy(at).to(self._matrix.device)], self._lost[at])
        return chosen

    def _error(self) -> float:
        """Error bound of a scaled product before it is rounded.

        Covers rounded operands (Cauchy-Schwarz) and float32 sums in any order (Higham 2002, Eq. 3.5).
        """
        d, row, lost = self._dimension, self._largest, float(self._lost.max(initial=0.0))
        roundoff = min(_ROUNDOFF[self.kind], _ROUNDOFF[torch.float32])
        summed = (d + 2 * _COLUMNS) * (roundoff * self._scale * self._reach**2 + 2.0**-126)
        if self.kind != torch.float16:
            return lost * row + summed
        exact = self._rows_type == torch.float16
        rounded = 0.0 if exact else _HALF_ROUNDOFF * row + 2.0**-24 * math.sqrt(d) / self._row_scale
        return (lost * self._row_scale) * (row + rounded) + rounded * self._scale * self._reach + summed + 4 * _LEAST_NORMAL

    def products(self, rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Scaled half squared distances (n, k) of the rows to all centroids, valid until the next call.

        Args:
            rows: (n, d), at most `batch` of them for speed.
            norms: (n,) float64 squared norms of the rows.
        """
        n, d = rows.shape
        size = _rounded(n) if self.kind == torch.float16 else n
        right = self._right()
        if size > len(self._extended):
            self._extended = torch.zeros(size, self._matrix.shape[1], dtype=self.kind, device=rows.device)
            self._extended[:, d : d + 2] = 1
            self._output = torch.empty(size, right.shape[1], dtype=self.kind, device=rows.device)
        extended = self._extended[:n]
        extended[:, :d] = rows if self._row_scale == 1 else rows.float() * self._row_scale
        extended[:, d + 2 : d + 4] = _split(norms * (self._scale / 2), self.kind)
        torch.mm(self._extended[:size], right, out=self._output[:size])
        return self._output[:n, : len(self._matrix)]

    def _right(self) -> torch.Tensor:
        """The centroids as the right operand, padded with infinitely far ones."""
        if self._padded is None:
            k, width = self._matrix.shape
            spare = torch.zeros((_rounded(k) if self.kind == torch.float16 else k) - k, width, dtype=self.kind)
            spare[:, self._dimension] = torch.inf
            self._padded = torch.cat([self._matrix, spare.to(self._matrix.device)])
        return self._padded.T

    def lower(self, products: torch.Tensor) -> torch.Tensor:
        """Lower bounds of the exact half squared distances, float32, unscaled."""
        return products.float() * ((1 - 2 * self._slack) / self._scale) - self._absolute

    def upper(self, products: torch.Tensor) -> torch.Tensor:
        """Upper bounds of the exact half squared distances, float32, unscaled."""
        return products.float() * ((1 + 2 * self._slack) / self._scale) + self._absolute

    def reach(self, upper: torch.Tensor) -> torch.Tensor:
        """The largest products (n,) whose exact half squared distances may be at most `upper` (n,)."""
        limit = (upper.double() + self._absolute) * (self._scale * (1 + 4 * self._slack))
        return _round_up(limit.float()) if self.kind == torch.float16 else limit.to(self.kind)


def _rounded(size: int) -> int:
    """Round a size up to one of a few: libraries compile and keep a kernel for every shape of a float16 product."""
    step = max(16, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


def _power(value: float) -> float:
    """The largest power of two that does not exceed the value."""
    return 2.0 ** math.floor(math.log2(value))


def _split(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Split each value (n,) into a sum of two numbers (n, 2) of this type."""
    high = values.to(kind)
    return torch.stack([high, (values - high.to(values.dtype)).to(kind)], dim=1)


def _round_up(values: torch.Tensor) -> torch.Tensor:
    half = values.half()
    return torch.where(half.float() < values, torch.nextafter(half, torch.full_like(half, math.inf)), half)
