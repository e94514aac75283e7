"""Intervals of means over seeds and evaluation rows.

Losses form a table of seeds by rows, whose entries share both a seed's training and a row's difficulty. Resampling seeds
and rows, each with replacement and independently of each other, and averaging the resampled entries is the pigeonhole
bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 386-411). It is mildly conservative for large
numbers of both. With s items it captures (s - 1) / s of the variance between them, as every bootstrap does, and its percentiles
are close to those of a normal distribution instead of the t distribution that a few items require. Three seeds that agree in
sign would always be distinguished from zero, which happens by chance one time in four. Each resample is therefore stretched
about the plain mean by sqrt(s / (s - 1)) t / z, in seeds and in rows, a factor that tends to 1 for many. Differences of two
contenders are taken entry by entry before resampling: seeds and rows are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
_CHUNK = 1 << 22
"""Maximum number of row weights in memory at a time."""


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile interval at `LEVEL`."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0

    def within(self, least: float, most: float) -> Interval:
        """The interval clipped to the possible values of its mean."""
        return Interval(self.mean, max(self.low, least), min(self.high, most))


def interval(values: np.ndarray, draws: int, seed: int) -> Interval:
    """The mean of a table and its percentile bootstrap interval over its rows and columns.

    Args:
        values: (s, n) float: seeds by evaluation rows; either may be 1, and is then not resampled.
        draws: number of resamples.
        seed: seed of the resampling; tables of the same shape are resampled identically.

    Raises:
        ValueError: the table is empty or contains a value that is not a finite number.
    """
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"expected a table of finite numbers, not one of shape {values.shape}")
    means = resampled_means(values, draws, seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def resampled_means(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws,) means of a table (s, n) after resampling seeds and rows, stretched for small numbers of either."""
    (seeds, rows), generator = values.shape, np.random.default_rng(seed)
    of_seeds = _weights(generator, seeds, draws)
    chunks = np.array_split(of_seeds, max(1, -(-draws * rows // _CHUNK)))
    return np.concatenate([((chunk @ values) * _weights(generator, rows, len(chunk))).sum(axis=1) for chunk in chunks])


def paired(one: np.ndarray, other: np.ndarray, draws: int, seed: int) -> Interval:
    """The mean difference of two contenders, entry by entry; one without seeds, (1, n), is compared with every seed of the other.

    Args:
        one: (s, n) or (1, n) float.
        other: the same, for the same rows and seeds in the same order.
        draws: number of resamples.
        seed: seed of the resampling.
    """
    return interval(one - other, draws, seed)


def _weights(generator: np.random.Generator, count: int, draws: int) -> np.ndarray:
    """(draws, count) shares of each of `count` items in a resample, stretched for small counts."""
    shares = generator.multinomial(count, np.full(count, 1 / count), size=draws) / count
    return 1 / count + (shares - 1 / count) * stretch(count)


def stretch(count: int) -> float:
    """Factor by which a percentile bootstrap interval of the mean of `count` items has to be widened at `LEVEL`."""
    if count == 1:
        return 1.0
    upper = (1 + LEVEL) / 2
    return float(np.sqrt(count / (count - 1)) * stdtrit(count - 1, upper) / ndtri(upper))
