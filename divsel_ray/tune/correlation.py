"""How two figures of the same trials go together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""
FEW = 10
"""Below so many trials an interval says little beyond that it is wide."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of a measure with the objective.

    Attributes:
        measure: the one.
        objective: the other.
        trials: in which both are known.
        r: in -1..1; None below three trials, or where one figure is the same in all.
        low, high: 95 % interval by Fisher's z transform; None below four trials, or where r is exactly 1 or -1.
    """

    measure: str
    objective: str
    trials: int
    r: float | None
    low: float | None
    high: float | None


def correlate(measure: str, objective: str, pairs: Sequence[tuple[float, float]]) -> Correlation:
    """Pearson's correlation over pairs, with the interval of Fisher (1921): tanh(atanh r ± 1.96 / sqrt(n - 3)).

    It holds for pairs that are independent and normally distributed; points of a grid are neither, so read it as a rough guide.
    """
    count, r = len(pairs), pearson(pairs)
    if r is None or count < 4 or abs(r) >= 1:
        return Correlation(measure, objective, count, r, None, None)
    reach = NORMAL_95 / math.sqrt(count - 3)
    low, high = (math.tanh(math.atanh(r) + sign * reach) for sign in (-1, 1))
    return Correlation(measure, objective, count, r, low, high)


def pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's r; None below three pairs, or where one of the two does not vary."""
    if len(pairs) < 3:
        return None
    one, other = np.array(pairs, dtype=np.float64).T
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return None if scale == 0 else float(np.clip(float(one @ other) / scale, -1.0, 1.0))
