"""How many rows each cluster gives: Yu et al. 2024, sec. 2.1, with rounding that loses nothing.

The paper's `b_j = b |D_j| / n` is not a whole number. Here the total is always exact: targets are scaled to the total
with every cluster capped by what it holds, then rounded by largest remainder.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def round_sizes(budget: int, rounds: int) -> list[int]:
    """Rows drawn in each round: b/N each (+-1), b in all.

    Example:
        >>> round_sizes(10, 3)
        [3, 4, 3]
    """
    bounds = [round(budget * step / rounds) for step in range(rounds + 1)]
    return [after - before for before, after in pairwise(bounds)]


def allocation_weights(sizes: np.ndarray, rule: str) -> np.ndarray:
    """Shares of the budget by cluster size: proportional, equal or sqrt. (k,) in, (k,) float64 summing to 1 out."""
    sizes = sizes.astype(np.float64)
    shares = {"proportional": sizes, "equal": (sizes > 0).astype(np.float64), "sqrt": np.sqrt(sizes)}[rule]
    return shares / shares.sum()


def allocate(targets: np.ndarray, capacity: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near `targets`, none above its `capacity`, summing to exactly `total`.

    Targets are scaled by one factor so that, capped, they sum to the total; what caps cut off is thereby spread over
    the other clusters in proportion. If the clusters with a target cannot hold the total, the rest goes to the others
    by capacity. Fractions are rounded by largest remainder, ties to the lower index.

    Args:
        targets: (k,) non-negative.
        capacity: (k,) rows still available.
        total: rows to give out, at most `capacity.sum()`.

    Raises:
        ValueError: the clusters do not hold `total` rows.
    """
    capacity = capacity.astype(np.int64)
    if total > capacity.sum():
        raise ValueError(f"{total} rows asked for, the clusters hold {capacity.sum()}")
    shares = _scale_under_caps(targets.astype(np.float64), capacity.astype(np.float64), float(total))
    missing = total - shares.sum()
    if missing > 1e-9:
        shares += _scale_under_caps(capacity - shares, capacity - shares, missing)
    return _largest_remainder(shares, capacity, total)


def _scale_under_caps(targets: np.ndarray, caps: np.ndarray, total: float) -> np.ndarray:
    """min(cap, factor x target) with the factor at which the sum is `total`, or every cap where none reaches it."""
    shares = np.zeros_like(targets)
    open_, left = targets > 0, total
    while open_.any() and left > 1e-12:
        scaled = targets * (left / targets[open_].sum())
        full = open_ & (scaled >= caps)
        if not full.any():
            shares[open_] = scaled[open_]
            break
        shares[full] = caps[full]
        left -= caps[full].sum()
        open_ &= ~full
    return shares


def _largest_remainder(shares: np.ndarray, capacity: np.ndarray, total: int) -> np.ndarray:
    counts = np.minimum(np.floor(shares + 1e-9).astype(np.int64), capacity)
    while (missing := total - counts.sum()) > 0:
        remainders = np.where(counts < capacity, shares - counts, -np.inf)
        winners = np.argsort(-remainders, kind="stable")[: min(missing, int((counts < capacity).sum()))]
        counts[winners] += 1
    return counts


def allocate_round(cumulative_targets: np.ndarray, drawn: np.ndarray, capacity: np.ndarray, total: int) -> np.ndarray:
    """This round's rows per cluster, from targets accumulated over the rounds.

    Rounding the running totals, and not each round, lets a small cluster whose share is 0.4 a round have its row in
    the second one instead of never.

    Args:
        cumulative_targets: (k,) sum over rounds of round size x weight.
        drawn: (k,) rows drawn in earlier rounds.
        capacity: (k,) rows that may be drawn in all.
        total: rows of this round.
    """
    return allocate(np.maximum(cumulative_targets - drawn, 0.0), capacity - drawn, total)
