"""The sampler interface: candidates in, rows in the order of choice out.

There are two kinds. A `Keyed` sampler assigns every row a key and takes the smallest, per cluster or over the whole pool; it
needs no vectors and stores a few numbers per row. A `Greedy` one chooses row after row, each depending on those before, from
vectors held in memory. Both are extensible: asked for more rows, they start with the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from divsel_ray.config import SelectConfig


@dataclass(frozen=True)
class Candidates:
    """The rows that may be chosen, in ascending order of their ids, so that ties broken by position are broken by row id.

    Attributes:
        row_ids: (n,) bytes of 32 hex digits, ascending.
        cluster: (n,) int cluster of each row, in 0..k-1.
        quality: (n,) float64, NaN where unknown.
        k: number of clusters.
        distance: (n,) float32 distance of each row to its centroid, if the sampler needs it.
        vectors: (n, d) float16 or float32 of unit length, if the sampler needs them.
    """

    row_ids: np.ndarray
    cluster: np.ndarray
    quality: np.ndarray
    k: int
    distance: np.ndarray | None = None
    vectors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def sizes(self) -> np.ndarray:
        """(k,) rows per cluster."""
        return np.bincount(self.cluster, minlength=self.k)

    def take(self, index: np.ndarray) -> Candidates:
        """The candidates at these ascending positions (or under this mask), with the same clusters."""
        distance = None if self.distance is None else self.distance[index]
        vectors = None if self.vectors is None else self.vectors[index]
        return Candidates(self.row_ids[index], self.cluster[index], self.quality[index], self.k, distance, vectors)


@dataclass(frozen=True)
class Keys:
    """The order in which rows are drawn.

    Attributes:
        values: (n,) float64; smaller keys are drawn first, ties go to the smaller row id.
        log_rates: (n,) natural logarithm of each row's rate, if `values` are exponential keys (see `exponential.py`);
            None if the order is not random.
    """

    values: np.ndarray
    log_rates: np.ndarray | None = None


KEYED_BYTES = 160
"""Memory of a draw by keys per row of the pool, including ids."""


@dataclass(frozen=True)
class Keyed:
    """A sampler that ranks rows by a key.

    Attributes:
        summary: one line for `--help`.
        by_cluster: whether each cluster contributes its share of the budget; otherwise the pool is ranked as a whole.
        keys: (candidates, settings, seed) to keys.
        needs: candidate attributes it reads besides row_ids and cluster: "quality", "distance".
        by_quality: whether it requires a quality.
    """

    summary: str
    by_cluster: bool
    keys: Callable[[Candidates, SelectConfig, int], Keys]
    needs: tuple[str, ...] = ()
    by_quality: bool = False

    def memory(self, n: int, d: int, k: int, b: int, config: SelectConfig) -> int:
        """Bytes of a draw from files, as measured by `jobs/bench_select.py` (resident memory, ten million rows)."""
        return KEYED_BYTES * n


@dataclass(frozen=True)
class Picks:
    """The rows chosen by a greedy sampler.

    Attributes:
        index: (count,) positions in the candidates, in the order of choice.
        gain: (count,) float64 gain of each row when it was chosen, in the sampler's own measure.
    """

    index: np.ndarray
    gain: np.ndarray


class Choose(Protocol):
    """The algorithm of a greedy sampler."""

    def __call__(self, candidates: Candidates, taken: np.ndarray, count: int, config: SelectConfig, seed: int) -> Picks:
        """Choose `count` further rows.

        Args:
            candidates: n rows with vectors.
            taken: (m,) positions already in the selection, not chosen again.
            count: rows to choose, at most n - m.
            config: settings.
            seed: seed of random choices; hashed with row ids (`data.hashing.uniform_hash`), never with positions.
        """


@dataclass(frozen=True)
class Greedy:
    """A sampler that chooses row after row.

    Attributes:
        summary: one line for `--help`, with time and memory in n rows, d dimensions, b rows chosen.
        choose: the algorithm.
        memory: (n, d, k, b, settings) to the bytes needed in addition to the vectors.
        needs: candidate attributes it reads besides row_ids and cluster: "quality", "vectors".
        by_quality: whether it requires a quality.
    """

    summary: str
    choose: Choose
    memory: Callable[[int, int, int, int, SelectConfig], int]
    needs: tuple[str, ...] = ("vectors",)
    by_quality: bool = False


Sampler = Keyed | Greedy
