"""Bounds on cluster weights, so that a gameable reward cannot move them too far in one round.

Floor and ceiling are multiples of the uniform weight; the step limit is a factor relative to last round's weight. If they
conflict, floor and ceiling take precedence and the step limit is relaxed as little as possible.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import WeightsConfig
from divsel_ray.select.allocation import spread

_EQUAL = 1e-9


def guard_weights(
    wanted: np.ndarray, before: np.ndarray, movable: np.ndarray, left: np.ndarray, config: WeightsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The weights closest to those requested by the update, within the guards.

    The movable clusters are scaled by one factor such that, clipped to their bounds, they keep their total mass. The others
    keep their weight unless the ceiling intervenes: a higher weight is lowered to it, and mass that does not fit under the
    ceiling of the movable clusters goes to the others. With few clusters left, the ceiling is at least an equal share of
    their mass.

    Args:
        wanted: (k,) requested weights up to a common factor; used for movable clusters only.
        before: (k,) last round's weights, summing to 1.
        movable: (k,) clusters that the update may move; all of them have rows left.
        left: (k,) clusters with rows left to draw; the weight of all others is unchanged.
        config: the guards.

    Returns:
        (k,) weights summing to 1, and (k,) the bound that applied to each: "floor", "ceiling", "step" or None.
    """
    ceiling = _ceiling(before, left, config)
    after, bound = before.copy(), np.full(len(before), None, dtype=object)
    kept = left & ~movable
    after[kept] = np.minimum(before[kept], ceiling)
    bound[after < before] = "ceiling"
    mass = float(before[movable].sum() + (before[kept] - after[kept]).sum())
    surplus = mass - ceiling * int(movable.sum())
    if surplus > 0 and kept.any():
        after[kept] = spread(after[kept], np.full(int(kept.sum()), ceiling), float(after[kept].sum()) + surplus)
        mass -= surplus
    if movable.any():
        after[movable], bound[movable] = _within(wanted[movable], before[movable], mass, ceiling, config, len(before))
    return after / after.sum(), bound


def _ceiling(before: np.ndarray, left: np.ndarray, config: WeightsConfig) -> float:
    if config.ceiling is None or not left.any():
        return 1.0
    return max(min(1.0, config.ceiling / len(before)), float(before[left].sum()) / int(left.sum()))


def _within(
    wanted: np.ndarray, before: np.ndarray, mass: float, ceiling: float, config: WeightsConfig, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the movable clusters, summing to `mass`, and the bounds that applied."""
    # Unscored clusters keep their weight, so the floor may exceed an equal share of the remaining mass.
    floor = min(config.floor / k, mass / len(before))
    low, high = np.full(len(before), floor), np.full(len(before), ceiling)
    if config.max_step is not None:
        low, high = (np.clip(before * factor, floor, ceiling) for factor in (1 / config.max_step, config.max_step))
    # Scaling cannot raise a weight of zero.
    reach = np.where(wanted > 0, high, low)
    if reach.sum() <= mass:
        after = spread(reach, np.full(len(before), ceiling), mass)
    elif low.sum() >= mass:
        after = _scaled(low, np.full(len(before), floor), low, mass)
    else:
        after = _scaled(wanted, low, reach, mass)
    return after, _bounds_met(after, (low, high), (floor, ceiling), config, k)


def _scaled(wanted: np.ndarray, low: np.ndarray, high: np.ndarray, mass: float) -> np.ndarray:
    """`wanted` times the factor at which, clipped to the bounds, it sums to `mass`; the bounds must allow that.

    Bisection finds which entries are clipped; the factor for the others is then exact.
    """
    if not wanted.any():
        return low
    wanted = wanted / wanted.max()
    smallest, largest = -700.0, 700.0
    for _ in range(100):
        middle = (smallest + largest) / 2
        below = np.clip(np.exp(middle) * wanted, low, high).sum() < mass
        smallest, largest = (middle, largest) if below else (smallest, middle)
    desired = np.exp(largest) * wanted
    clipped = np.clip(desired, low, high)
    free = (desired > low) & (desired < high)
    if free.any():
        clipped[free] = wanted[free] * ((mass - clipped[~free].sum()) / wanted[free].sum())
    return np.clip(clipped, low, high)


def _bounds_met(
    after: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    limits: tuple[float, float],
    config: WeightsConfig,
    k: int,
) -> np.ndarray:
    (low, high), (floor, ceiling) = bounds, limits
    at_low = (low > 0) & (after <= low * (1 + _EQUAL))
    at_high = (after > 0) & (after >= high * (1 - _EQUAL))
    met = np.full(len(after), None, dtype=object)
    at_floor, at_ceiling = after <= floor * (1 + _EQUAL), after >= ceiling * (1 - _EQUAL)
    met[(at_low & ~at_floor) | (at_high & ~at_ceiling)] = "step"
    met[at_low & at_floor] = "floor"
    if config.ceiling is not None and config.ceiling < k:
        met[at_high & at_ceiling] = "ceiling"
    return met
