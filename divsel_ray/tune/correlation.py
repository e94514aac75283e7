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
        r: in -1..1; None where fewer than three trials are free, or where one figure is the same in all.
        low, high: 95 % interval by Fisher's z transform; None where fewer than four are free, or r is exactly 1 or -1.
        groups: of trials that stand on the same rows; a trial is compared with those of its group.
    """

    measure: str
    objective: str
    trials: int
    r: float | None
    low: float | None
    high: float | None
    groups: int = 1


def correlate(
    measure: str, objective: str, pairs: Sequence[tuple[float, float]], groups: Sequence[Hashable] | None = None
) -> Correlation:
    """Pearson's correlation over pairs, with the interval of Fisher (1921): tanh(atanh r ± 1.96 / sqrt(n - g - 2)).

    With g > 1 groups it is the correlation of what is left when each group's mean is taken away, a partial correlation given the
    group, which leaves g - 1 fewer pairs free (Fisher 1924). The interval holds for pairs that are independent and normally
    distributed; points of a grid are neither, so read it as a rough guide.

    Args:
        measure: what the pairs' first figure is.
        objective: what the second is.
        pairs: of figures, one for each trial.
        groups: the group of each pair; None where all are of one.
    """
    names = [None] * len(pairs) if groups is None else groups
    count, kinds = len(pairs), max(1, len(set(names)))
    r, free = pearson(pairs, names), count - kinds - 2
    if r is None or free < 1 or abs(r) >= 1:
        return Correlation(measure, objective, count, r, None, None, kinds)
    reach = NORMAL_95 / math.sqrt(free)
    low, high = (math.tanh(math.atanh(r) + sign * reach) for sign in (-1, 1))
    return Correlation(measure, objective, count, r, low, high, kinds)


def pearson(pairs: Sequence[tuple[float, float]], groups: Sequence[Hashable]) -> float | None:
    """Pearson's r within groups; None with fewer than two pairs more than groups, or where one of the two does not vary."""
    kinds = {name: at for at, name in enumerate(dict.fromkeys(groups))}
    if len(pairs) < len(kinds) + 2:
        return None
    group = np.array([kinds[name] for name in groups])
    one, other = (_centred(figures, group) for figures in np.array(pairs, dtype=np.float64).T)
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return None if scale == 0 else float(np.clip(float(one @ other) / scale, -1.0, 1.0))


def _centred(figures: NDArray[np.float64], group: NDArray[np.intp]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = figures - (np.bincount(group, figures) / np.bincount(group))[group]
    # What is the same in all of a group is not to vary by how its mean is rounded.
    found[np.abs(found) <= ROUNDING * np.abs(figures).max()] = 0
    return found
