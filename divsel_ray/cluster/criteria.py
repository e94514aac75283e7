"""Choosing k: the measures of each candidate, and the rule that recommends one.

No measure alone finds the right k. The simplified silhouette rises again when clusters become small, inertia always falls,
and a clustering can be stable without being useful. So a k is recommended only if two measures that err in different ways
agree (`recommend`); otherwise the default is used, and the reason states what the measures show.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from divsel_ray.config import DEFAULT_K, ROWS_PER_CLUSTER
from divsel_ray.errors import InputError

SMALLEST, LARGEST = 64, 8192
"""The grid of Yu et al. 2024, section 3."""
FEWEST_CANDIDATES = 5
MOST_SINGLETONS = 0.05
"""Largest share of clusters with a single row; beyond it silhouettes say little (such rows count as 0)."""
LEAST_TOLERANCE = 0.02
"""Adjusted Rand indices closer than this count as equal, however little the refits differed."""
MODERATE = 0.65
"""Adjusted Rand index from which agreement is at least moderate (Steinley 2004)."""
CONTRAST = 1.1
"""Least ratio of the recommended k's simplified silhouette to the median of the other k's."""
ELBOW_DEPTH = 0.05
"""Least depth of an elbow below the chord, as a share of the chord's height."""


@dataclass(frozen=True)
class Candidate:
    """The measures of one k.

    Attributes:
        k: number of clusters.
        rows: number of rows clustered.
        inertia: sum of the squared Euclidean distances of all rows to their centroids.
        simplified_silhouette: mean over all rows, see `silhouette.simplified`.
        silhouette: mean standard silhouette (Rousseeuw 1987) over a sample, within the sample's part of each cluster; None if
            the sample falls into fewer than two clusters or into as many as it has rows.
        silhouette_rows: size of that sample.
        stability: mean adjusted Rand index (Hubert and Arabie 1985) over all pairs of refits, see `stability`; None if a
            subsample has fewer than k rows.
        stability_deviation: standard deviation of those indices.
        refits: number of subsample clusterings compared.
        singletons: number of clusters with one row.
        empty: number of clusters without rows.
        smallest, median, largest: rows per cluster.
        iterations: iterations of the fit.
        converged: False if `cluster.max_iter` ended the fit.
        seconds: wall time spent on this k.
    """

    k: int
    rows: int
    inertia: float
    simplified_silhouette: float
    silhouette: float | None
    silhouette_rows: int
    stability: float | None
    stability_deviation: float | None
    refits: int
    singletons: int
    empty: int
    smallest: int
    median: float
    largest: int
    iterations: int
    converged: bool
    seconds: float


@dataclass(frozen=True)
class Recommendation:
    """The k to use, and why.

    Attributes:
        k: number of clusters.
        preferred: whether the data supports it; False if it is the default.
        reason: one sentence with the figures.
    """

    k: int
    preferred: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """All results for one set of embeddings; `asdict` makes it JSON, and `of_record` reads that.

    Attributes:
        embeddings: description of the clustered vectors.
        rows: number of vectors.
        dimension: length of each vector.
        seed: seed of initial centroids and samples.
        settings: settings of each fit.
        candidates: the measures, ascending in k.
        elbow: k at the elbow of inertia, or None.
        recommendation: recommended k and the reason.
    """

    embeddings: str
    rows: int
    dimension: int
    seed: int
    settings: dict[str, Any]
    candidates: Sequence[Candidate]
    elbow: int | None
    recommendation: Recommendation

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Choice:
        """From JSON values."""
        candidates = [Candidate(**one) for one in record["candidates"]]
        return cls(**{**record, "candidates": candidates, "recommendation": Recommendation(**record["recommendation"])})

    @property
    def grid(self) -> list[int]:
        """The k that were measured."""
        return [one.k for one in self.candidates]


def default_grid(rows: int) -> list[int]:
    """Powers of two from 64 to 8192, none above a twentieth of the rows; starts lower where that leaves fewer than five.

    Raises:
        InputError: there are fewer than 40 rows.
    """
    top = min(LARGEST, rows // ROWS_PER_CLUSTER).bit_length() - 1
    if top < 1:
        raise InputError(f"{rows} rows are too few to choose k: expected at least {2 * ROWS_PER_CLUSTER}; set k with --grid")
    bottom = max(1, min(SMALLEST.bit_length() - 1, top - FEWEST_CANDIDATES + 1))
    return [2**power for power in range(bottom, top + 1)]


def parse_grid(text: str) -> list[int]:
    """Parse text such as "64,128,256" into ascending, distinct k.

    Raises:
        InputError: a part is not an integer of at least 1.
    """
    try:
        grid = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--grid {text!r}: expected integers separated by commas, e.g. 64,128,256") from None
    if grid[0] < 1:
        raise InputError(f"--grid {text!r}: k {grid[0]} is below 1; expected positive numbers of clusters, e.g. 64,128,256")
    return grid


def check_grid(grid: Iterable[int], rows: int) -> None:
    """Check that no k exceeds the number of rows.

    Raises:
        InputError: a k does; the message names it.
    """
    for k in grid:
        if k > rows:
            raise InputError(f"--grid: k {k} exceeds the pool's {rows} rows; remove it")


def elbow(candidates: Sequence[Candidate]) -> int | None:
    """Find the k at the elbow of inertia; None if the curve has none.

    The curve is log inertia over log k, both scaled to [0, 1]; its elbow is the point farthest below the chord between its
    ends (Satopaa et al. 2011, "kneedle", without smoothing). Inertia that falls as a power of k is a straight line there.

    Args:
        candidates: ascending in k.
    """
    points = [(math.log(one.k), math.log(one.inertia), one.k) for one in candidates if one.inertia > 0]
    if len(points) < 3 or points[0][1] <= points[-1][1]:
        return None
    (left, top, _), (right, bottom, _) = points[0], points[-1]
    depths = [(right - x) / (right - left) - (y - bottom) / (top - bottom) for x, y, _ in points]
    deepest = int(np.argmax(depths))
    return points[deepest][2] if depths[deepest] > ELBOW_DEPTH else None


def recommend(candidates: Sequence[Candidate], rows: int) -> Recommendation:
    """Recommend one k and state the reason.

    1. A k is eligible up to rows / 20, if it has no empty clusters and at most one singleton in 20 clusters.
    2. An eligible k is stable if its stability is within one standard deviation (at least 0.02) of the best.
    3. Among the stable k, the one with the highest simplified silhouette leads; ties go to the smallest k.
    4. It is recommended if its stability is at least 0.65 and its simplified silhouette at least 1.1 times the median of
       the other eligible k. Data without clusters fails this: its clusterings do not repeat, or no k separates rows better
       than another. The default is then used: 256, or a twentieth of the rows if that is less.

    Args:
        candidates: ascending in k.
        rows: number of rows clustered.
    """
    judged = [one for one in candidates if _can_be_judged(one, rows)]
    if len(judged) < 2:
        return _default(rows, _too_few(judged, rows))
    lead = _lead(judged)
    others = statistics.median(one.simplified_silhouette for one in judged if one is not lead)
    weaknesses = _weaknesses(lead, judged, others)
    if weaknesses:
        return _default(rows, f"k = {lead.k:,} comes closest, but {' and '.join(weaknesses)}")
    found = f"refits reproduce its clusters (adjusted Rand index {_agreement(lead)})"
    apart = f"its simplified silhouette, {lead.simplified_silhouette:.3f}, stands out from the other k's median, {others:.3f}"
    return Recommendation(lead.k, True, f"k = {lead.k:,}: {found} and {apart}.")


def _can_be_judged(one: Candidate, rows: int) -> bool:
    few_singletons = one.singletons <= MOST_SINGLETONS * one.k and one.empty == 0
    return one.k * ROWS_PER_CLUSTER <= rows and few_singletons and one.stability is not None


def _lead(judged: Sequence[Candidate]) -> Candidate:
    best = max(judged, key=_stability)
    tolerance = max(best.stability_deviation or 0.0, LEAST_TOLERANCE)
    stable = [one for one in judged if _stability(one) >= _stability(best) - tolerance]
    return max(stable, key=lambda one: one.simplified_silhouette)


def _stability(one: Candidate) -> float:
    assert one.stability is not None
    return one.stability


def _agreement(one: Candidate) -> str:
    return f"{_stability(one):.2f} ± {one.stability_deviation or 0.0:.2f}"


def _weaknesses(lead: Candidate, judged: Sequence[Candidate], others: float) -> list[str]:
    """Reasons against the leading k."""
    found = []
    if _stability(lead) < MODERATE:
        found.append(f"its refits agree only with an adjusted Rand index of {_agreement(lead)} ({MODERATE} is moderate)")
    if lead.simplified_silhouette < CONTRAST * others:
        highest = max(judged, key=lambda one: one.simplified_silhouette)
        where = "" if highest is lead else f" (highest: {highest.simplified_silhouette:.3f} at k = {highest.k:,})"
        silhouette = f"its simplified silhouette, {lead.simplified_silhouette:.3f},"
        found.append(f"{silhouette} does not stand out from the other k's median, {others:.3f}{where}")
    return found


def _too_few(judged: Sequence[Candidate], rows: int) -> str:
    limits = f"k up to {rows // ROWS_PER_CLUSTER:,} (rows / {ROWS_PER_CLUSTER}), few singletons, no empty clusters"
    if judged:
        return f"only k = {judged[0].k:,} of the grid is eligible ({limits}), so there is nothing to compare it with"
    return f"no k of the grid is eligible ({limits})"


def _default(rows: int, because: str) -> Recommendation:
    k = max(1, min(DEFAULT_K, rows // ROWS_PER_CLUSTER))
    return Recommendation(k, False, f"The data shows no preferred k, so the default k = {k:,} is used: {because}.")
