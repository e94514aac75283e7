"""What a sampler is: rows and cluster budgets in, chosen rows out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from divsel_ray.config import SelectConfig


@dataclass(frozen=True)
class Candidates:
    """The rows that may be drawn.

    Attributes:
        row_ids: (n,) bytes of 32 hex digits.
        cluster: (n,) int cluster of each row, in 0..k-1.
        quality: (n,) float64, NaN where unknown.
        k: number of clusters.
    """

    row_ids: np.ndarray
    cluster: np.ndarray
    quality: np.ndarray
    k: int

    @property
    def sizes(self) -> np.ndarray:
        """(k,) rows per cluster."""
        return np.bincount(self.cluster, minlength=self.k)


@dataclass(frozen=True)
class Draw:
    """What a sampler took.

    Attributes:
        index: (b,) positions in the candidates, ascending.
        weight: (b,) inverse of the probability with which each row was drawn.
    """

    index: np.ndarray
    weight: np.ndarray


class Sampler(Protocol):
    """A way to choose rows. Nested: larger counts with the same seed extend a smaller draw."""

    def __call__(self, candidates: Candidates, counts: np.ndarray, config: SelectConfig, seed: int) -> Draw:
        """Take exactly `counts[j]` rows, (k,), of each cluster j."""
