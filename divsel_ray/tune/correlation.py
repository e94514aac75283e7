"""Correlation of two figures over the same trials."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""
FEW = 10
"""With fewer points than this, the interval is too wide to be informative."""
ROUNDING = 1e-13
"""Relative to the largest figure: smaller deviations are treated as rounding errors."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of a measure with the objective.

    Attributes:
        measure: name of the measure.
        objective: name of the objective.
        trials: number of trials in which both are known.
        points: number of distinct settings, apart from those that decide the rows; trials of one point count once.
        groups: number of groups of trials that use the same rows; a trial is only compared within its group.
        r: in -1..1; None with fewer than three free pairs, or if one of the figures is constant.
        low, high: 95 % interval by Fisher's z transform; None with fewer than four free pairs, or if r is exactly 1 or -1.
    """

    measure: str
    objective: str
    trials: int
    points: int
    groups: int
    r: float | None
    low: float | None
    high: float | None


def correlate(
    measure: str,
    objective: str,
    pairs: Sequence[tuple[float, float]],
    points: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Correlation:
    """Pearson's correlation over points, with the interval of Fisher (1921): tanh(atanh r ± 1.96 / sqrt(n - 3)).

    Trials of a group use the same rows, so the mean of each group is subtracted first. The residuals are averaged over the
    trials of a point: its settings have the same effect in all of them, so they are not independent pairs. If every trial is
    its own point, each group beyond the first leaves one free pair fewer (partial correlation, Fisher 1924). The interval
    assumes independent, normally distributed pairs; the points of a grid are neither, so treat it as a rough guide.

    Args:
        measure: name of the first figure of the pairs.
        objective: name of the second.
        pairs: pairs of figures, one for each trial.
        points: point of each trial; None if every trial is its own point.
        groups: group of each trial; None if all are in the same group.
    """
    point = _codes(range(len(pairs)) if points is None else points)
    group = _codes([None] * len(pairs) if groups is None else groups)
    counts = len(pairs), len(set(point)), len(set(group))
    free = min(counts[1], counts[0] - counts[2] + 1)
    r = _pearson(*(_averaged(_centred(figures, group), point) for figures in np.array(pairs).T)) if free >= 3 else None
    if r is None or free < 4 or abs(r) >= 1:
        return Correlation(measure, objective, *counts, r, None, None)
    reach = NORMAL_95 / math.sqrt(free - 3)
    low, high = (math.tanh(math.atanh(r) + sign * reach) for sign in (-1, 1))
    return Correlation(measure, objective, *counts, r, low, high)


def _pearson(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    everyone = np.zeros(len(one), np.intp)
    one, other = _centred(one, everyone), _centred(other, everyone)
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return None if scale == 0 else float(np.clip(float(one @ other) / scale, -1.0, 1.0))


def _codes(names: Sequence[Hashable]) -> NDArray[np.intp]:
    """The names numbered 0, 1, ... in order of first occurrence."""
    known = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], np.intp)


def _averaged(figures: NDArray[np.float64], code: NDArray[np.intp]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.bincount(code, figures) / np.bincount(code)
    return found


def _centred(figures: NDArray[np.float64], code: NDArray[np.intp]) -> NDArray[np.float64]:
    found = figures - _averaged(figures, code)[code]
    # A figure that is constant within a group must not vary because its mean was rounded.
    found[np.abs(found) <= ROUNDING * np.abs(figures).max()] = 0
    return found
