"""From candidates and budgets to the rows chosen: what is the same for every sampler.

Budgets are nested: each smaller selection is part of the next larger one. Rows that are in the selection already count
against the budget and, where it is one of rows, against their cluster's share of it.
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
    """How much is to be drawn.

    Attributes:
        budgets: ascending; the selection for each holds those before it. In rows, or in tokens where `tokens` is given.
        tokens: (n,) of each candidate, or None where budgets count rows.
        weights: (k,) of the clusters, or None for those of the settings' allocation.
        drawn: (k,) rows per cluster of the selection of an earlier round; None in the first.
        targets: (k,) targets accumulated over earlier rounds; None in the first.
        among: (n,) of each candidate the inverse of the probability with which it came to be one; None where all rows are.
    """

    budgets: Sequence[int]
    tokens: np.ndarray | None = None
    weights: np.ndarray | None = None
    drawn: np.ndarray | None = None
    targets: np.ndarray | None = None
    among: np.ndarray | None = None


@dataclass(frozen=True)
class Draw:
    """What was chosen.

    Attributes:
        index: (b,) positions in the candidates: those taken before first, then each budget's new rows.
        weight: (t, b) for each of the budgets, inverse of the probability with which each row of its selection was drawn; 1
            where chance played no part. Of rows that a budget does not reach it says nothing.
        gain: (b,) what a greedy sampler gained by the row; NaN for others.
        level: (b,) which of the budgets is the smallest whose selection holds the row.
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
        taken: (m,) positions, ascending, of rows that are in the selection whatever the sampler says.
        demand: how much.
        config: the sampler and its settings.
        seed: of the draw.

    Raises:
        InputError: given weights do not fit the clusters.
        ValueError: the candidates do not hold a budget of rows, or `taken` exceeds one.
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
    # A sampler of the whole pool is one with a single group.
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
    """Rows to draw of each group for each budget, and the targets reached.

    What a group cannot hold of its share goes to the others by their shares, and counts as their target: a later budget is
    then split by the shares of the groups that have rows left, and nobody has to give back what it got for another.
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
    """The same, for budgets of tokens."""
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
    """Picks that together hold more tokens than the budget, or all; how many that takes is found by trying."""
    most = len(candidates) - len(taken)
    count = min(most, int(1.1 * budget / max(tokens.mean(), 1)) + 1) if most else 0
    while True:
        picks = sampler.choose(candidates, taken, count, config, seed)
        if count == most or int(tokens[picks.index].sum()) > budget:
            return picks
        count = min(most, 2 * count)
