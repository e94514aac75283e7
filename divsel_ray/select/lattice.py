"""Unit vectors on an integer lattice, whose products float32 computes without rounding.

A vector is scaled to a length just under 4,096 and its entries are rounded to integers. Every partial sum of the product
of two such vectors is then an integer of at most 2^24 (Cauchy-Schwarz), which float32 represents exactly: a matrix product
is bit-identical for any library, number of threads or block shape. Samplers that use vectors compare these integers, so
their choices do not depend on the order of summation.

The only approximation is the rounding of the entries: it moves a cosine by about 1e-4 (two errors of standard deviation
1 / sqrt(12), each times a vector of length 4,096, over 4,096^2). Equal vectors stay equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LENGTH = 4096.0
"""Maximum length of a lattice vector: float32 represents all integers up to 4096^2 = 2^24."""
_BLOCK_ELEMENTS = 1 << 21


class Lattice:
    """Rows rounded to the lattice. Memory 2 n d bytes in addition to the vectors, time O(n d).

    Args:
        vectors: (n, d) real, of any length; a zero vector stays zero.

    Attributes:
        values: (n, d) int16.
        squared: (n,) float64 squared norms, integers; each about `unit` squared.
        unit: length to which the vectors were scaled.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        n, d = vectors.shape
        # Rounding lengthens a vector by at most sqrt(d) / 2.
        self.unit = LENGTH - np.sqrt(d) / 2
        self.values = np.empty((n, d), np.int16)
        self.squared = np.empty(n)
        for part in blocks(n, _BLOCK_ELEMENTS // max(1, d)):
            rows = vectors[part].astype(np.float64)
            norms = np.sqrt(np.square(rows).sum(axis=1))
            rows *= (self.unit / np.where(norms > 0, norms, 1.0))[:, None]
            np.rint(rows, out=rows)
            self.values[part] = rows
            self.squared[part] = np.square(rows).sum(axis=1)

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, at: np.ndarray | slice) -> np.ndarray:
        """Some rows, (m, d) float32."""
        return self.values[at].astype(np.float32)

    def total(self, at: np.ndarray) -> np.ndarray:
        """Sum of some rows, (d,) float64 integers."""
        sums = np.zeros(self.values.shape[1])
        for part in blocks(len(at), _BLOCK_ELEMENTS // max(1, len(sums))):
            sums += self.values[at[part]].sum(axis=0, dtype=np.int64)
        return sums

    def project(self, at: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Products (m,) float64 of some rows with an integer vector (d,): exact below 2^53."""
        result = np.empty(len(at))
        for part in blocks(len(at), _BLOCK_ELEMENTS // max(1, len(vector))):
            result[part] = self.values[at[part]].astype(np.float64) @ vector
        return result


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of lattice rows (a, d) with lattice rows (b, d): (a, b) float32, exact integers."""
    import torch

    return torch.mm(torch.from_numpy(left), torch.from_numpy(right).T).numpy()


def blocks(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `n` positions, `size` in each except the last."""
    step = max(1, size)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def memory(n: int, d: int) -> int:
    """Bytes of a lattice of n rows in d dimensions and of its construction."""
    return 2 * n * d + 8 * n + 3 * 8 * max(_BLOCK_ELEMENTS, d)
