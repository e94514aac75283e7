"""Stability of a clustering: k-means is fitted to several subsamples, and the fits are compared on common rows.

Each fit labels the same evaluation rows; the agreement of two labelings is their adjusted Rand index (Hubert and Arabie
1985), 1 for the same partition and 0 for chance. The mean over all pairs is the stability (Ben-Hur, Elisseeff and Guyon
2002). From 0.65 agreement is moderate, from 0.8 good, from 0.9 excellent (Steinley 2004).

All draws hash the global row number, so no figure depends on how the rows are partitioned. A draw is ordered by its keys:
a smaller sample is a prefix of a larger one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import adjusted_rand_score

from divsel_ray.cluster import initialise, kernels, lloyd
from divsel_ray.cluster.exact import Float64, Int64
from divsel_ray.cluster.initialise import Draw, Purpose
from divsel_ray.cluster.kernels import Int32, Rows
from divsel_ray.cluster.lloyd import Settings
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import LocalShards, Shards, inspect

REFITS = 3
EVALUATION_ROWS = 10_000
SUBSAMPLE_ROWS = 20_000
SUBSAMPLE_ROWS_PER_CLUSTER = 10
"""Subsamples are larger than `SUBSAMPLE_ROWS` if their clusters would otherwise have fewer rows than this."""


class Drawn(NamedTuple):
    """Drawn rows of a partition: keys (m,), global row numbers (m,), rows (m, d)."""

    keys: Float64
    indices: Int64
    rows: Rows


def evaluation_rows(rows: int) -> int:
    """Number of rows that all refits label."""
    return min(rows, EVALUATION_ROWS)


def subsample_rows(rows: int, k: int) -> int:
    """Number of rows each refit is fitted to: half of them, capped at 20,000 or ten per cluster, whichever is larger."""
    return min(rows // 2, max(SUBSAMPLE_ROWS, SUBSAMPLE_ROWS_PER_CLUSTER * k))


def draw_rows(shards: Shards, seed: int, number: int, count: int) -> Rows:
    """Draw (count, d) rows uniformly from all rows, without replacement, in the order of their keys.

    Args:
        shards: the partitions, with at least `count` rows.
        seed: seed of the job.
        number: number of the draw; 0 for the evaluation rows, 1, 2, ... for the subsamples.
        count: number of rows.
    """
    draw = Draw(seed, 0, Purpose.STABILITY, number)
    keys = np.concatenate(shards.map(smallest_keys, draw, count))
    last = float(np.partition(keys, count - 1)[count - 1])
    parts = shards.map(rows_up_to, draw, last)
    order = np.lexsort((np.concatenate([part.indices for part in parts]), np.concatenate([part.keys for part in parts])))
    return np.concatenate([part.rows for part in parts])[order[:count]]


def smallest_keys(shard: Shard, draw: Draw, count: int) -> Float64:
    """The smallest keys (at most `count`) of a partition's rows."""
    return np.sort(_keys(shard, draw))[:count]


def rows_up_to(shard: Shard, draw: Draw, last: float) -> Drawn:
    """The rows of a partition whose keys are at most `last`."""
    keys = _keys(shard, draw)
    at = np.flatnonzero(keys <= last)
    return Drawn(keys[at], shard.numbers[at], shard.take(at))


def _keys(shard: Shard, draw: Draw) -> Float64:
    return initialise.uniforms(draw, shard.numbers)


def refit(rows: Rows, evaluation: Rows, settings: Settings) -> Int32:
    """Cluster a subsample, and label the evaluation rows with the result.

    Args:
        rows: (n, d) subsample, at least `settings.k` finite rows.
        evaluation: (m, d).
        settings: settings of the fit; use another seed for each subsample, so that the starts differ too.

    Returns:
        Labels (m,).
    """
    shards = LocalShards([Shard(rows)])
    fit = lloyd.fit(shards, settings, inspect(shards, rows.shape[1]).geometry)
    return kernels.assign(evaluation, fit.centroids).labels


def agreement(labelings: Sequence[Int32]) -> tuple[float, float]:
    """Mean and standard deviation of the adjusted Rand indices of all pairs of labelings.

    Args:
        labelings: at least two labelings of the same rows. A single pair has deviation 0.
    """
    indices = [adjusted_rand_score(one, other) for one, other in itertools.combinations(labelings, 2)]
    return float(np.mean(indices)), float(np.std(indices, ddof=1)) if len(indices) > 1 else 0.0
