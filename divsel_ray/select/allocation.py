"""Number of rows drawn from each cluster (Yu et al. 2024, sec. 2.1), with rounding that keeps the total exact.

The paper's `b_j = b |D_j| / n` is not a whole number. Here targets are scaled to the total, with every cluster capped at
its size, and then rounded by largest remainder.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.errors import InputError


def round_sizes(budget: int, rounds: int) -> list[int]:
    """Rows drawn in each round: b/N each (+-1), b in total.

    Example:
        >>> round_sizes(10, 3)
        [3, 4, 3]
    """
    bounds = [round(budget * step / rounds) for step in range(rounds + 1)]
    return [after - before for before, after in pairwise(bounds)]


def allocation_weights(sizes: np.ndarray, config: SelectConfig) -> np.ndarray:
    """Shares of the budget by cluster size, (k,) to (k,) float64 summing to 1.

    | `allocation` | share of a cluster |
    |---|---|
    | proportional | its size (Yu et al. 2024, sec. 2.1) |
    | equal, water_fill | the same for all. What a small cluster lacks is spread equally over the others, so the counts follow |
    | | a water level: `min(size, level)` |
    | sqrt | the square root of its size |
    | tempered | its size to the power `exponent` |
    | given | `weights` |

    Raises:
        InputError: the number of given weights is not k, or every non-empty cluster has weight zero.
    """
    exponents = {"proportional": 1.0, "equal": 0.0, "water_fill": 0.0, "sqrt": 0.5, "tempered": config.exponent}
    filled = sizes > 0
    if config.weights is None:
        shares = np.where(filled, np.maximum(sizes, 1).astype(np.float64) ** exponents[config.allocation], 0.0)
    else:
        if len(config.weights) != len(sizes):
            raise InputError(f"select.weights: {len(config.weights)} weights for {len(sizes)} clusters; give one for each")
        shares = np.where(filled, config.weights, 0.0)
        if not shares.sum() > 0 and filled.any():
            raise InputError("select.weights: zero for every cluster that has rows; set a positive weight for at least one")
    return shares / max(shares.sum(), 1e-300)


def allocate(targets: np.ndarray, capacity: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near `targets`, none above its `capacity`, summing to exactly `total`.

    All targets are scaled by the factor at which they sum to the total after capping; the excess of capped clusters is thus
    spread over the others in proportion. If the clusters with a target cannot supply the total, the rest is taken from the
    other clusters in proportion to capacity. Fractions are rounded by largest remainder; ties go to the lower index.

    Args:
        targets: (k,) non-negative.
        capacity: (k,) rows still available.
        total: rows to allocate, at most `capacity.sum()`.

    Raises:
        ValueError: the clusters contain fewer than `total` rows.
    """
    capacity = capacity.astype(np.int64)
    if total > capacity.sum():
        raise ValueError(f"{total} rows requested, but the clusters contain {capacity.sum()}")
    return _largest_remainder(spread(targets, capacity, total), capacity, total)


def spread(targets: np.ndarray, capacity: np.ndarray, total: float) -> np.ndarray:
    """The unrounded result of `allocate`: (k,) floats, none above its capacity, summing to `total` if the capacities allow it."""
    capacity = capacity.astype(np.float64)
    shares = _scale_under_caps(targets.astype(np.float64), capacity, float(total))
    missing = total - shares.sum()
    if missing > 1e-9:
        shares += _scale_under_caps(capacity - shares, capacity - shares, missing)
    return shares


def _scale_under_caps(targets: np.ndarray, caps: np.ndarray, total: float) -> np.ndarray:
    """min(cap, factor x target), with the factor at which the sum is `total`; the caps themselves if no factor reaches it."""
    shares = np.zeros_like(targets)
    open_, left = targets > 0, total
    while open_.any() and left > 1e-12:
        # Relative to the largest remaining target: the factor for denormal targets would overflow.
        relative = np.where(open_, targets, 0.0) / targets[open_].max()
        scaled = relative * (left / relative.sum())
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


def allocate_round(
    cumulative_targets: np.ndarray, drawn: np.ndarray, capacity: np.ndarray, total: int, *, min_one: bool = False
) -> np.ndarray:
    """This round's rows per cluster, from targets accumulated over the rounds.

    Rounding the running totals rather than each round lets a small cluster with a share of 0.4 rows per round receive a row
    in the second round instead of never.

    Args:
        cumulative_targets: (k,) sum over rounds of round size x weight.
        drawn: (k,) rows drawn in earlier rounds.
        capacity: (k,) rows that may be drawn over all rounds.
        total: rows to draw in this round.
        min_one: first give every cluster without a row one, largest targets first if the total is too small.
    """
    first = _one_each(cumulative_targets, (drawn == 0) & (capacity > 0), total) if min_one else np.zeros_like(drawn)
    drawn = drawn + first
    rest = allocate(np.maximum(cumulative_targets - drawn, 0.0), capacity - drawn, total - int(first.sum()))
    return np.asarray(first + rest)


def split_budgets(budgets: Sequence[int], finals: np.ndarray) -> np.ndarray:
    """Split every nested budget over the parts in proportion to their final counts, (t,), (p,) to (t, p).

    Running totals are rounded, as over rounds: a part never contributes less to a larger budget, nor more than its final
    count. A budget larger than the sum of the final counts is filled as far as they reach.

    Args:
        budgets: (t,) ascending.
        finals: (p,) whole numbers, the final count of each part.
    """
    total, have, counts = int(finals.sum()), np.zeros_like(finals), []
    for budget in budgets:
        reached = min(budget, total)
        have = have + allocate_round(finals * float(reached) / max(total, 1), have, finals, reached - int(have.sum()))
        counts.append(have)
    return np.array(counts)


def _one_each(targets: np.ndarray, wanting: np.ndarray, total: int) -> np.ndarray:
    """One row for each group in `wanting`; only for those with the largest targets if there are more than `total` of them."""
    order = np.lexsort((np.arange(len(targets)), -targets))
    given = np.zeros(len(targets), np.int64)
    given[order[wanting[order]][:total]] = 1
    return given


def allocate_tokens(targets: np.ndarray, lengths: Sequence[np.ndarray], drawn: np.ndarray, budget: int) -> np.ndarray:
    """Number of rows of each group, in its drawing order, that fill a token budget as far as whole rows can.

    Each group first contributes the rows that fit into its share. Then, while some group's next row fits into the remaining
    budget, the group furthest below its share contributes that row. The budget is never exceeded.

    Args:
        targets: (k,) shares of the budget; scaled so that, capped by the tokens of each group, they sum to it.
        lengths: for each group, the token counts of its rows in drawing order.
        drawn: (k,) rows drawn already; they count against the budget.
        budget: total tokens.

    Returns:
        (k,) total rows, at least `drawn`.
    """
    ends = [np.concatenate([[0], np.cumsum(length, dtype=np.int64)]) for length in lengths]
    held = np.array([end[-1] for end in ends], dtype=np.float64)
    shares = _scale_under_caps(targets.astype(np.float64), held, float(budget))
    fitting = [int(np.searchsorted(end, share + 1e-9, side="right")) - 1 for end, share in zip(ends, shares, strict=True)]
    counts = np.maximum(fitting, drawn) if fitting else drawn.copy()
    while (over := sum(int(end[c]) for end, c in zip(ends, counts, strict=True)) - budget) > 0:
        # Some groups exceeded their share in earlier draws: the others make room.
        spare = [(int(end[c] - end[d]), j) for j, (end, c, d) in enumerate(zip(ends, counts, drawn, strict=True)) if c > d]
        if not spare:
            break
        surplus, at = max(spare)
        counts[at] = max(drawn[at], int(np.searchsorted(ends[at], ends[at][counts[at]] - min(over, surplus), side="right")) - 1)
    return _fill(counts, shares, ends, -over)


def _fill(counts: np.ndarray, shares: np.ndarray, ends: list[np.ndarray], left: int) -> np.ndarray:
    queue = [(float(end[count] - share), at) for at, (end, count, share) in enumerate(zip(ends, counts, shares, strict=True))]
    heapq.heapify(queue)
    while queue:
        _, at = heapq.heappop(queue)
        following = int(counts[at]) + 1
        if following < len(ends[at]) and (size := int(ends[at][following] - ends[at][following - 1])) <= left:
            counts[at], left = following, left - size
            heapq.heappush(queue, (float(ends[at][following] - shares[at]), at))
    return counts
