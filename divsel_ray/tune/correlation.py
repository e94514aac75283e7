"""How two figures of the same trials go together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""
FEW = 10
"""Below so many trials an interval says little beyond that it is wide."""
ROUNDING = 1e-13
"""Of the largest figure: deviations up to it are the arithmetic's."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of a measure with the objective.

    Attributes:
        measure: the one.
        objective: the other.
        trials: in which both are known.
        points: settings that differ by more than the rows that they stand on; trials of one count as one.
        groups: of trials that stand on the same rows; a trial is compared with those of its group.
        r: in -1..1; None where fewer than three points are free, or where one figure is the same in all.
        low, high: 95 % interval by Fisher's z transform; None where fewer than four are free, or r is exactly 1 or -1.
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

    Trials of a group stand on the same rows, so each group's mean is taken away first. What is left is averaged over the trials
    of a point: what the settings of a point do is the same in all of them, so that they are not pairs of their own. Where every
    trial is a point of its own, each group beyond the first leaves one pair fewer free (partial correlation, Fisher 1924).
    The interval holds for pairs that are independent and normally distributed; points of a grid are neither, so read it as a
    rough guide.

    Args:
        measure: what the pairs' first figure is.
        objective: what the second is.
        pairs: of figures, one for each trial.
        points: the point of each trial; None where each is one of its own.
        groups: the group of each trial; None where all are of one.
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
    """0, 1, ... for each different name."""
    known = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], np.intp)


def _averaged(figures: NDArray[np.float64], code: NDArray[np.intp]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.bincount(code, figures) / np.bincount(code)
    return found


def _centred(figures: NDArray[np.float64], code: NDArray[np.intp]) -> NDArray[np.float64]:
    found = figures - _averaged(figures, code)[code]
    # What is the same in all of a group is not to vary by how its mean is rounded.
    found[np.abs(found) <= ROUNDING * np.abs(figures).max()] = 0
    return found
