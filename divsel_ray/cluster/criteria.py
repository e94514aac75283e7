"""Choosing k: what is measured of each candidate, and the rule that recommends one.

No measure sees the right k by itself. The simplified silhouette grows again when clusters become small, inertia always
falls, and a clustering can be stable without being useful. So k is recommended only where two measures that err in
different ways agree (`recommend`); otherwise the default stands, and the reason says what each measure would have said.
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
"""Share of the clusters that may hold a single row; beyond it silhouettes say little (their rows count as 0)."""
LEAST_TOLERANCE = 0.02
"""Adjusted Rand indices closer than this are not told apart, however little the refits differed."""
MODERATE = 0.65
"""Adjusted Rand index from which agreement is at least moderate (Steinley 2004)."""
CONTRAST = 1.1
"""The recommended k's simplified silhouette is at least so many times the median of the others'."""
ELBOW_DEPTH = 0.05
"""How far below the chord, as a share of its height, an elbow lies at least."""


@dataclass(frozen=True)
class Candidate:
    """What is known of one k.

    Attributes:
        k: number of clusters.
        rows: rows that were clustered.
        inertia: sum of the squared Euclidean distances of all rows to their centroids.
        simplified_silhouette: mean over all rows, see `silhouette.simplified`.
        silhouette: mean standard silhouette (Rousseeuw 1987) over a sample, clusters cut down to it; None where the
            sample falls into fewer than two clusters or into as many as it has rows.
        silhouette_rows: size of that sample.
        stability: mean adjusted Rand index (Hubert and Arabie 1985) of every two refits, see `stability`; None where a
            subsample holds fewer rows than k.
        stability_deviation: standard deviation of those indices.
        refits: clusterings of subsamples that were compared.
        singletons: clusters of one row.
        empty: clusters without rows.
        smallest, median, largest: rows per cluster.
        iterations: of the fit.
        converged: False when `cluster.max_iter` ended it.
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
        preferred: whether the data asks for it; False when the default stands.
        reason: one sentence with the figures.
    """

    k: int
    preferred: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """All that was found for one set of embeddings; `asdict` of it is JSON, and `of_record` reads that.

    Attributes:
        embeddings: what was clustered, in words.
        rows: vectors.
        dimension: of each.
        seed: of first centroids and samples.
        settings: of each fit.
        candidates: what was measured, ascending in k.
        elbow: of inertia, or None.
        recommendation: k and its reason.
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
    """Powers of two from 64 to 8192, none above a twentieth of the rows; from lower down where that leaves fewer than five.

    Raises:
        InputError: there are fewer than 40 rows.
    """
    top = min(LARGEST, rows // ROWS_PER_CLUSTER).bit_length() - 1
    if top < 1:
        raise InputError(f"{rows} rows are too few to choose k for: expected at least {2 * ROWS_PER_CLUSTER}; name k with --grid")
    bottom = max(1, min(SMALLEST.bit_length() - 1, top - FEWEST_CANDIDATES + 1))
    return [2**power for power in range(bottom, top + 1)]


def parse_grid(text: str) -> list[int]:
    """Ascending distinct k from text such as "64,128,256".

    Raises:
        InputError: something in it is not an integer of at least 1.
    """
    try:
        grid = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--grid {text!r}: expected integers separated by commas, e.g. 64,128,256") from None
    if grid[0] < 1:
        raise InputError(f"--grid {text!r}: k {grid[0]} is below 1; expected numbers of clusters, e.g. 64,128,256")
    return grid


def check_grid(grid: Iterable[int], rows: int) -> None:
    """Refuse a k that exceeds the number of rows.

    Raises:
        InputError: names that k.
    """
    for k in grid:
        if k > rows:
            raise InputError(f"--grid: k {k} exceeds the pool's {rows} rows; leave it out")


def elbow(candidates: Sequence[Candidate]) -> int | None:
    """The k at the elbow of inertia, or None where the curve has none.

    The curve is log inertia over log k, both scaled to [0, 1]; its elbow is the point farthest below the chord between its
    ends (Satopaa et al. 2011, "kneedle", without smoothing). Inertia that falls by a power of k is a straight line there.

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
    """One k and the reason for it.

    1. Judged are the k up to rows / 20 without empty clusters and with at most one singleton in 20 clusters.
    2. Stable are those whose stability is within one standard deviation (at least 0.02) of the best one's.
    3. Of the stable, the highest simplified silhouette leads; of equal ones the smallest k.
    4. It is recommended where its stability is at least 0.65 and its simplified silhouette at least 1.1 times the median of
       the other judged k. Data without clusters fails this: its clusterings do not repeat, or no k separates rows better
       than another. The default then stands: 256, or a twentieth of the rows where that is less.

    Args:
        candidates: ascending in k.
        rows: rows that were clustered.
    """
    judged = [one for one in candidates if _can_be_judged(one, rows)]
    if len(judged) < 2:
        return _default(rows, _too_few(judged, rows))
    lead = _lead(judged)
    others = statistics.median(one.simplified_silhouette for one in judged if one is not lead)
    weaknesses = _weaknesses(lead, judged, others)
    if weaknesses:
        return _default(rows, f"k = {lead.k:,} comes nearest, but {' and '.join(weaknesses)}")
    found = f"refits find its clusters again (adjusted Rand index {_agreement(lead)})"
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
    """What speaks against the leading k."""
    found = []
    if _stability(lead) < MODERATE:
        found.append(f"its refits agree only by an adjusted Rand index of {_agreement(lead)} ({MODERATE} is moderate)")
    if lead.simplified_silhouette < CONTRAST * others:
        highest = max(judged, key=lambda one: one.simplified_silhouette)
        where = "" if highest is lead else f" (highest: {highest.simplified_silhouette:.3f} at k = {highest.k:,})"
        silhouette = f"its simplified silhouette, {lead.simplified_silhouette:.3f},"
        found.append(f"{silhouette} does not stand out from the other k's median, {others:.3f}{where}")
    return found


def _too_few(judged: Sequence[Candidate], rows: int) -> str:
    limits = f"k up to {rows // ROWS_PER_CLUSTER:,} (rows / {ROWS_PER_CLUSTER}), few singletons, no empty clusters"
    if judged:
        return f"only k = {judged[0].k:,} of the grid can be judged ({limits}), so there is nothing to compare it with"
    return f"no k of the grid can be judged ({limits})"


def _default(rows: int, because: str) -> Recommendation:
    k = max(1, min(DEFAULT_K, rows // ROWS_PER_CLUSTER))
    return Recommendation(k, False, f"The data shows no preferred k, so the default k = {k:,} stands: {because}.")
