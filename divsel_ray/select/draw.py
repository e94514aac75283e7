"""From candidates and budgets to chosen rows: the part common to all samplers.

Budgets are nested: each smaller selection is contained in the next larger one. Rows already in the selection count against
the budget and, if budgets count rows, against their cluster's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.allocation import allocate_round, allocate_tokens, allocation_weights, spread
from divsel_ray.select.keyed import Groups
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Candidates, Greedy, Keyed, Picks


@dataclass(frozen=True)
class Demand:
    """How much to draw.

    Attributes:
        budgets: ascending; the selection for each contains the smaller ones. In rows, or in tokens if `tokens` is given.
        tokens: (n,) tokens of each candidate, or None if budgets count rows.
        weights: (k,) cluster weights, or None for the configured allocation.
        drawn: (k,) rows per cluster selected up to the previous round; None in the first.
        targets: (k,) targets accumulated over earlier rounds; None in the first.
        among: (n,) inverse of the probability with which each row became a candidate; None if all rows are candidates.
    """

    budgets: Sequence[int]
    tokens: np.ndarray | None = None
    weights: np.ndarray | None = None
    drawn: np.ndarray | None = None
    targets: np.ndarray | None = None
    among: np.ndarray | None = None


@dataclass(frozen=True)
class Draw:
    """The result of a draw.

    Attributes:
        index: (b,) positions in the candidates: rows taken before the draw first, then the new rows of each budget.
        weight: (t, b) for each budget, the inverse of the probability with which each row of its selection was drawn; 1 if
            chance played no part. Undefined for rows that are not in the budget's selection.
        gain: (b,) gain of each row under a greedy sampler; NaN for other samplers.
        level: (b,) index of the smallest budget whose selection contains the row.
        new: (b,) whether the row was in no earlier round.
        drawn: (k,) rows per cluster.
        targets: (k,) targets accumulated so far.
        weights: (k,) cluster weights that were used.
    """

    index: np.ndarray
    weight: np.ndarray
    gain: np.ndarray
    level: np.ndarray
    new: np.ndarray
    drawn: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def draw(candidates: Candidates, taken: np.ndarray, demand: Demand, config: SelectConfig, seed: int) -> Draw:
    """Choose rows to fill the budgets.

    Args:
        candidates: n rows.
        taken: (m,) positions, ascending, of rows that are in the selection regardless of the sampler.
        demand: how much to draw.
        config: the sampler and its settings.
        seed: seed of the draw.

    Raises:
        InputError: the given weights do not match the clusters.
        ValueError: a budget exceeds the number of candidates or is smaller than the number of taken rows.
    """
    sampler = SAMPLERS[config.sampler]
    weights = allocation_weights(candidates.sizes, config) if demand.weights is None else demand.weights
    chosen = (
        _draw_greedy(sampler, candidates, taken, demand, config, seed)
        if isinstance(sampler, Greedy)
        else _draw_keyed(sampler, candidates, taken, replace(demand, weights=weights), config, seed)
    )
    index = np.concatenate([taken, chosen.index]).astype(np.int64)
    before = len(taken)
    return Draw(
        index,
        np.concatenate([np.ones((len(demand.budgets), before)), chosen.weight], axis=1),
        np.concatenate([np.full(before, np.nan), chosen.gain]),
        np.concatenate([np.zeros(before, np.int64), chosen.level]),
        np.concatenate([np.full(before, demand.drawn is None), chosen.new]),
        np.bincount(candidates.cluster[index], minlength=candidates.k),
        chosen.targets,
        weights,
    )


@dataclass(frozen=True)
class _Chosen:
    """The part of a draw that the sampler decided."""

    index: np.ndarray
    weight: np.ndarray
    gain: np.ndarray
    level: np.ndarray
    new: np.ndarray
    targets: np.ndarray


def _draw_keyed(
    sampler: Keyed, candidates: Candidates, taken: np.ndarray, demand: Demand, config: SelectConfig, seed: int
) -> _Chosen:
    positions = np.delete(np.arange(len(candidates)), taken)
    rest = candidates.take(positions) if len(taken) else candidates
    # A sampler of the whole pool treats it as a single group.
    group, used = (rest.cluster, candidates.cluster[taken]) if sampler.by_cluster else _one_group(len(rest), len(taken))
    k = candidates.k if sampler.by_cluster else 1
    groups = Groups(sampler.keys(rest, config, seed), group, k)
    shares = demand.weights if sampler.by_cluster and demand.weights is not None else np.ones(1)
    before = np.bincount(used, minlength=k)
    if demand.tokens is None:
        counts, targets = _rows_of(groups.sizes, before, demand, shares, config)
    else:
        counts, targets = _tokens_of(groups, demand.tokens[positions], int(demand.tokens[taken].sum()), demand, shares), shares
    level = np.full(len(rest), len(counts))
    for at in reversed(range(len(counts))):
        level[groups.smallest(counts[at])] = at
    index = np.flatnonzero(level < len(counts))
    earlier = index[:0] if demand.drawn is None else groups.smallest(demand.drawn - before)
    among = np.ones(len(rest)) if demand.among is None or not groups.random else demand.among[positions]
    weights = [groups.inverse_probability(index, count, fixed=demand.tokens is None) * among[index] for count in counts]
    return _Chosen(
        positions[index],
        np.stack(weights),
        np.full(len(index), np.nan),
        level[index],
        ~np.isin(index, earlier),
        targets if sampler.by_cluster else np.zeros(candidates.k),
    )


def _one_group(rest: int, taken: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(rest, np.int64), np.zeros(taken, np.int64)


def _rows_of(
    sizes: np.ndarray, before: np.ndarray, demand: Demand, shares: np.ndarray, config: SelectConfig
) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows to draw from each group for each budget, and the targets reached.

    What a group lacks of its share is spread over the others by their shares and counts towards their targets. A later budget
    is then split by the shares of the groups that have rows left, and no group has to return rows it contributed for another.
    """
    have, done = (before, 0) if demand.drawn is None else (demand.drawn, int(demand.drawn.sum()))
    targets = np.zeros(len(sizes)) if demand.targets is None else demand.targets
    counts = []
    for budget in demand.budgets:
        targets = targets + spread(shares, np.maximum(sizes + before - targets, 0.0), budget - done)
        done, new = budget, budget - int(have.sum())
        have = have + allocate_round(targets, have, sizes + before, new, min_one=config.min_one)
        counts.append(have - before)
    return counts, targets


def _tokens_of(groups: Groups, tokens: np.ndarray, spent: int, demand: Demand, shares: np.ndarray) -> list[np.ndarray]:
    """Rows to draw from each group for each token budget."""
    lengths = [tokens[groups.ranked(group)] for group in range(len(groups.sizes))]
    counts = [np.zeros(len(lengths), np.int64)]
    for budget in demand.budgets:
        counts.append(allocate_tokens(shares, lengths, counts[-1], budget - spent))
    return counts[1:]


def _draw_greedy(
    sampler: Greedy, candidates: Candidates, taken: np.ndarray, demand: Demand, config: SelectConfig, seed: int
) -> _Chosen:
    most = len(candidates) - len(taken)
    if demand.tokens is None:
        picks = sampler.choose(candidates, taken, demand.budgets[-1] - len(taken), config, seed)
        ends = [budget - len(taken) for budget in demand.budgets]
    else:
        left = [budget - int(demand.tokens[taken].sum()) for budget in demand.budgets]
        picks = _pick_tokens(sampler, candidates, taken, left[-1], demand.tokens, config, seed)
        spent = np.cumsum(demand.tokens[picks.index])
        ends = [int(np.searchsorted(spent, budget, side="right")) for budget in left]
    index, count = picks.index[: ends[-1]], min(ends[-1], most)
    level = np.searchsorted(ends, np.arange(count), side="right")
    weight = np.ones((len(ends), count))
    return _Chosen(index, weight, picks.gain[:count], level, np.ones(count, bool), np.zeros(candidates.k))


def _pick_tokens(
    sampler: Greedy,
    candidates: Candidates,
    taken: np.ndarray,
    budget: int,
    tokens: np.ndarray,
    config: SelectConfig,
    seed: int,
) -> Picks:
    """Picks that together exceed the token budget, or all rows; the number of picks is found by trial."""
    most = len(candidates) - len(taken)
    count = min(most, int(1.1 * budget / max(tokens.mean(), 1)) + 1) if most else 0
    while True:
        picks = sampler.choose(candidates, taken, count, config, seed)
        if count == most or int(tokens[picks.index].sum()) > budget:
            return picks
        count = min(most, 2 * count)
