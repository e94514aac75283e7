"""Intervals of means over seeds and evaluation rows.

Losses form a table of seeds by rows, whose entries share both a seed's training and a row's difficulty. Resampling seeds
and rows, each with replacement and independently of each other, and averaging what they select, is the pigeonhole
bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 386-411). It is mildly conservative where both
are many; of s things it sees (s - 1) / s of the variance between them, as every bootstrap does, and its percentiles are near
those of a normal distribution, where so few have a t distribution's. Three seeds that agree in sign would always be told apart
from zero, by chance one time in four. So each resample is stretched about the plain mean by sqrt(s / (s - 1)) t / z, in seeds
and in rows; for many it is 1. Differences of two contenders are taken entry by entry before that: seeds and rows are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
_CHUNK = 1 << 22
"""Weights of rows held at a time."""


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile interval at `LEVEL`."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0

    def within(self, least: float, most: float) -> Interval:
        """The interval without what its mean cannot be."""
        return Interval(self.mean, max(self.low, least), min(self.high, most))


def interval(values: np.ndarray, draws: int, seed: int) -> Interval:
    """The mean of a table and its percentile bootstrap interval over its rows and columns.

    Args:
        values: (s, n) float: seeds by evaluation rows; either may be 1, and is then not resampled.
        draws: resamples.
        seed: of the resampling; the same seed resamples tables of one shape alike.

    Raises:
        ValueError: the table is empty or holds what is not a finite number.
    """
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"expected a table of finite numbers, not one of shape {values.shape}")
    means = resampled_means(values, draws, seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def resampled_means(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws,) means of a table (s, n) of which seeds and rows were resampled, stretched for few of either."""
    (seeds, rows), generator = values.shape, np.random.default_rng(seed)
    of_seeds = _weights(generator, seeds, draws)
    chunks = np.array_split(of_seeds, max(1, -(-draws * rows // _CHUNK)))
    return np.concatenate([((chunk @ values) * _weights(generator, rows, len(chunk))).sum(axis=1) for chunk in chunks])


def paired(one: np.ndarray, other: np.ndarray, draws: int, seed: int) -> Interval:
    """The mean difference of two contenders, entry by entry; one that has no seeds, (1, n), meets every seed of the other.

    Args:
        one: (s, n) or (1, n) float.
        other: likewise, of the same rows and seeds in the same order.
        draws: resamples.
        seed: of the resampling.
    """
    return interval(one - other, draws, seed)


def _weights(generator: np.random.Generator, count: int, draws: int) -> np.ndarray:
    """(draws, count) shares of a resample that each of `count` things makes up, stretched for few."""
    shares = generator.multinomial(count, np.full(count, 1 / count), size=draws) / count
    return 1 / count + (shares - 1 / count) * stretch(count)


def stretch(count: int) -> float:
    """How much wider than a percentile bootstrap's an interval of the mean of `count` things has to be at `LEVEL`."""
    if count == 1:
        return 1.0
    upper = (1 + LEVEL) / 2
    return float(np.sqrt(count / (count - 1)) * stdtrit(count - 1, upper) / ndtri(upper))
