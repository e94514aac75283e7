"""Diversity measures of a selection, compared with random subsets of the same size.

Every measure has its own blind spot, so several are reported: cluster coverage, distance to the nearest other row, the
Vendi score, remaining near copies, lengths, and sources. None of them considers quality.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from divsel_ray.data.hashing import uniform_hash
from divsel_ray.select.semantic import ROUNDING, unit_vectors

COPY_COSINE = 0.95
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SAMPLE = 20_000
_BLOCK = 1024
_OTHERS_BLOCK = 8192


@dataclass(frozen=True)
class Rows:
    """Rows of the pool.

    Attributes:
        row_ids: (n,) bytes of 32 hex digits.
        vectors: (n, d) float16 or float32; only their directions count.
        cluster: (n,) ints in 0..k-1.
        tokens: (n,) ints.
        source: (n,) names of the files that the rows come from.
    """

    row_ids: NDArray[np.bytes_]
    vectors: NDArray[np.floating]
    cluster: NDArray[np.integer]
    tokens: NDArray[np.integer]
    source: NDArray

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, index: NDArray[np.integer]) -> Rows:
        """The rows at these positions."""
        return Rows(self.row_ids[index], self.vectors[index], self.cluster[index], self.tokens[index], self.source[index])


@dataclass(frozen=True)
class Mix:
    """The composition of a pool.

    Attributes:
        clusters: (k,) number of rows of each cluster.
        sources: number of rows of each source.
    """

    clusters: NDArray[np.integer]
    sources: dict[str, int]


@dataclass(frozen=True)
class Diversity:
    """The measures of one set of rows.

    Attributes:
        rows: number of rows.
        clusters_covered: share of the pool's non-empty clusters with at least one row.
        cluster_entropy: Shannon entropy of the rows over the clusters, divided by its maximum, the logarithm of the number of
            non-empty clusters in the pool: 1 if all have equally many rows.
        nearest_distance: mean of 1 - cosine to the nearest other row, in 0..2; NaN for a single row.
        copies: share of rows with another row at a cosine of at least 0.95.
        nearest_rows: number of rows whose nearest row was searched for among all; the two measures above are based on them.
        vendi: Vendi score, 1 (all equal) .. `vendi_rows` (all orthogonal).
        vendi_rows: number of rows it was computed on; scores for different numbers of rows are not comparable.
        tokens_mean: mean length in tokens.
        tokens_quantiles: length at each of `QUANTILES`.
        sources: share of the rows from each source.
        source_distance: total variation distance between those shares and the pool's, in 0..1.
    """

    rows: int
    clusters_covered: float
    cluster_entropy: float
    nearest_distance: float
    copies: float
    nearest_rows: int
    vendi: float
    vendi_rows: int
    tokens_mean: float
    tokens_quantiles: tuple[float, ...]
    sources: dict[str, float]
    source_distance: float


@dataclass(frozen=True)
class PredictionInterval:
    """95 % prediction interval of a measure for one more random subset, by Student's t, assuming normally distributed draws.

    Attributes:
        mean: mean over the draws.
        low: lower end; at least 0, since no measure is negative.
        high: upper end; at most 1 for shares.
    """

    mean: float
    low: float
    high: float


COMPARED = (
    "clusters_covered",
    "cluster_entropy",
    "nearest_distance",
    "copies",
    "vendi",
    "tokens_mean",
    "source_distance",
)
"""The measures computed for random subsets."""
_SHARES = ("clusters_covered", "cluster_entropy", "copies", "source_distance")


def pool_mix(cluster: NDArray[np.integer], source: NDArray, k: int) -> Mix:
    """The composition of a pool, from the cluster and source of each row."""
    return Mix(np.bincount(cluster, minlength=k), dict(Counter(source.tolist())))


def measure(rows: Rows, pool: Mix, seed: int, sample: int = SAMPLE) -> Diversity:
    """Measure a set of rows.

    Time is O(sample^2 d) for nearest rows and O(sample d min(d, sample)) for the Vendi score; memory in addition to the rows
    is 4 n d bytes, 40 MB for blocks and 8 min(d, sample)^2.

    Args:
        rows: n of the pool's rows, at least one.
        pool: composition of the whole pool.
        seed: seed of the samples.
        sample: maximum number of rows for the Vendi score, picked by hash. Nearest rows are searched for among all n, for
            every row or, if n exceeds `sample`, for sample^2 / n rows picked by hash.
    """
    if not len(rows):
        raise ValueError("no rows to measure")
    units, keys = unit_vectors(rows.vectors), uniform_hash(seed, "diversity", rows.row_ids)
    asked = _smallest(keys, len(rows) if len(rows) <= sample else max(1, sample**2 // len(rows)))
    nearest = nearest_cosines(units, asked)
    vendi_rows = _smallest(keys, sample)
    shares = {name: count / len(rows) for name, count in Counter(rows.source.tolist()).items()}
    covered, entropy = _over_clusters(rows.cluster, pool.clusters)
    return Diversity(
        rows=len(rows),
        clusters_covered=covered,
        cluster_entropy=entropy,
        nearest_distance=float(np.mean(1 - nearest, dtype=np.float64)) if len(rows) > 1 else float("nan"),
        copies=float(np.mean(nearest >= COPY_COSINE - ROUNDING)),
        nearest_rows=len(asked),
        vendi=vendi_score(units[vendi_rows]),
        vendi_rows=len(vendi_rows),
        tokens_mean=float(np.mean(rows.tokens)),
        tokens_quantiles=tuple(float(value) for value in np.quantile(rows.tokens, QUANTILES)),
        sources=shares,
        source_distance=_total_variation(shares, pool.sources),
    )


def _smallest(keys: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Positions of the `count` smallest keys, ascending."""
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _over_clusters(cluster: NDArray[np.integer], sizes: NDArray[np.integer]) -> tuple[float, float]:
    """(share covered, normalised entropy); the entropy over a single cluster counts as 1."""
    counts, filled = np.bincount(cluster, minlength=len(sizes)), int(np.count_nonzero(sizes))
    share = counts[counts > 0] / len(cluster)
    entropy = float(-(share * np.log(share)).sum()) / np.log(filled) if filled > 1 else 1.0
    return len(share) / filled, entropy


def _total_variation(shares: dict[str, float], pool: dict[str, int]) -> float:
    total = sum(pool.values())
    return sum(abs(shares.get(name, 0.0) - pool.get(name, 0) / total) for name in sorted({*shares, *pool})) / 2


def nearest_cosines(units: NDArray[np.float32], asked: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cosine between each queried row and the nearest other row.

    Args:
        units: (n, d) vectors of unit length.
        asked: (m,) positions.

    Returns:
        (m,) float32; -inf if there is no other row.
    """
    nearest = np.full(len(asked), -np.inf, dtype=np.float32)
    for first in range(0, len(asked), _BLOCK):
        mine = asked[first : first + _BLOCK]
        for start in range(0, len(units), _OTHERS_BLOCK):
            cosine = units[mine] @ units[start : start + _OTHERS_BLOCK].T
            itself = np.flatnonzero((mine >= start) & (mine < start + cosine.shape[1]))
            cosine[itself, mine[itself] - start] = -np.inf
            np.maximum(nearest[first : first + _BLOCK], cosine.max(axis=1), out=nearest[first : first + _BLOCK])
    return np.minimum(nearest, 1)


def vendi_score(units: NDArray[np.float32]) -> float:
    """The effective number of distinct rows: exp of the entropy of the eigenvalues of K / n (Friedman and Dieng 2022, Eq. 1).

    K contains the cosines between the rows. K / n and the d x d matrix X'X / n have the same non-zero eigenvalues; the
    smaller of the two is used.

    Args:
        units: (n, d) vectors of unit length, n at least 1.
    """
    rows = units.astype(np.float64) if len(units) <= units.shape[1] else None
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T if rows is not None else _gram(units))
    positive = eigenvalues[eigenvalues > 0]
    share = positive / positive.sum() if len(positive) else np.ones(1)
    return float(np.exp(-(share * np.log(share)).sum()))


def _gram(units: NDArray[np.float32]) -> NDArray[np.float64]:
    """X'X in float64, (d, d), in blocks of rows."""
    total = np.zeros((units.shape[1], units.shape[1]))
    for start in range(0, len(units), _OTHERS_BLOCK):
        block = units[start : start + _OTHERS_BLOCK].astype(np.float64)
        total += block.T @ block
    return total


def random_subset(row_ids: NDArray[np.bytes_], size: int, seed: int, draw: int) -> NDArray[np.int64]:
    """A random subset of `size` rows, without replacement: the smallest hashes for `random-<draw>`; ascending positions."""
    return _smallest(uniform_hash(seed, f"random-{draw}", row_ids), size)


def intervals(draws: Sequence[Diversity]) -> dict[str, PredictionInterval]:
    """Mean and 95 % interval of every compared measure over random subsets, at least two (see `PredictionInterval`)."""
    found = {}
    for name in COMPARED:
        values = np.array([getattr(draw, name) for draw in draws], dtype=np.float64)
        # A prediction interval for one more draw, with mean and deviation estimated from a few.
        width = float(stats.t.ppf(0.975, len(values) - 1)) * math.sqrt(1 + 1 / len(values))
        mean, spread = float(values.mean()), width * float(values.std(ddof=1))
        high = min(mean + spread, 1.0) if name in _SHARES else mean + spread
        found[name] = PredictionInterval(mean, max(mean - spread, 0.0), high)
    return found
