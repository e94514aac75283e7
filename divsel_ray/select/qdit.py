"""QDIT (Bukharin and Zhao 2023, "Data Diversity Matters for Robust Instruction Tuning"): coverage and quality at once.

Greedily chooses the row with the largest `(1 - a) x coverage + a x quality`, a = `quality_share`. Coverage is the row's gain
in facility location (`facility.py`), divided by the largest such gain of any row while none is chosen; quality is the row's
rank among the candidates, divided by their number. Both therefore lie in 0..1. Coverage gains fall as rows are chosen
and quality does not, so even a small `a` determines the late rows.

Time and memory are those of facility location; with a > 0 more gains are recomputed. The sum of a falling gain and a
constant one is still falling, so greedy may be lazy here too. Exactness is that of `facility.py`.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select import facility
from divsel_ray.select.facility import Coverage, coverage_of
from divsel_ray.select.lazy import extend_greedily
from divsel_ray.select.quality import ranked_quality
from divsel_ray.select.sampler import Candidates, Greedy, Picks


class QualityAndCoverage:
    """Coverage in units of the largest first gain, and quality.

    Args:
        coverage: coverage of n rows, none chosen.
        quality: (n,) in 0..1.
        share: weight of quality, in 0..1.
    """

    def __init__(self, coverage: Coverage, quality: np.ndarray, share: float) -> None:
        self._coverage, self._share = coverage, share
        self._modular = share * quality
        self._unit = coverage.gains().max()

    def gain(self, position: int) -> float:
        """What the row adds to both."""
        return float((1 - self._share) * (self._coverage.gain(position) / self._unit) + self._modular[position])

    def gains(self) -> np.ndarray:
        """`gain` of every row, (n,) float64, bit-identical."""
        return (1 - self._share) * (self._coverage.gains() / self._unit) + self._modular

    def add(self, position: int) -> None:
        """Choose the row."""
        self._coverage.add(position)


def _choose(candidates: Candidates, taken: np.ndarray, count: int, config: SelectConfig, seed: int) -> Picks:
    if count == 0:
        return Picks(np.empty(0, np.int64), np.empty(0))
    objective = QualityAndCoverage(coverage_of(candidates, config), ranked_quality(candidates), config.quality_share)
    return extend_greedily(objective, len(candidates), taken, count)


SAMPLER = Greedy(
    "coverage of the pool and quality at once (QDIT), O(n^2 d) to 65,536 rows, O(n d) beyond",
    choose=_choose,
    memory=facility.memory,
    needs=("quality", "vectors"),
)
