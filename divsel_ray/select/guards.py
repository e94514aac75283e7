"""Bounds on cluster weights, so that a reward that can be gamed does not carry them away in one round.

Floor and ceiling are shares of the uniform weight, the step limit a factor to last round's weight. Where they contradict
one another, floor and ceiling hold, and the step limit gives way by as little as does.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.config import WeightsConfig
from divsel_ray.select.allocation import spread

_EQUAL = 1e-9


def guard_weights(
    wanted: np.ndarray, before: np.ndarray, movable: np.ndarray, left: np.ndarray, config: WeightsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The weights nearest to what the update asks for, within the guards.

    The movable clusters are scaled by one factor at which, clipped to their bounds, they keep the mass they had. The others
    keep their weight unless the ceiling forces it: a higher one comes down to it, and what movable clusters cannot hold
    below it goes to the others. With few clusters left, the ceiling is no lower than an equal share of their mass.

    Args:
        wanted: (k,) what the update asks for, up to one factor; of movable clusters only.
        before: (k,) last round's weights, summing to 1.
        movable: (k,) clusters that the update may move; all of them have rows left.
        left: (k,) clusters that have rows left to draw; the weight of others stays.
        config: the guards.

    Returns:
        (k,) weights summing to 1, and (k,) which bound held each: "floor", "ceiling", "step" or None.
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
    """Weights of the movable clusters that sum to `mass`, and what held them."""
    # Clusters that were not scored keep what they have, so a floor may be more than there is to share.
    floor = min(config.floor / k, mass / len(before))
    low, high = np.full(len(before), floor), np.full(len(before), ceiling)
    if config.max_step is not None:
        low, high = (np.clip(before * factor, floor, ceiling) for factor in (1 / config.max_step, config.max_step))
    # Nothing times a factor is nothing.
    reach = np.where(wanted > 0, high, low)
    if reach.sum() <= mass:
        after = spread(reach, np.full(len(before), ceiling), mass)
    elif low.sum() >= mass:
        after = _scaled(low, np.full(len(before), floor), low, mass)
    else:
        after = _scaled(wanted, low, reach, mass)
    return after, _bounds_met(after, (low, high), (floor, ceiling), config, k)


def _scaled(wanted: np.ndarray, low: np.ndarray, high: np.ndarray, mass: float) -> np.ndarray:
    """`wanted` by the one factor at which, clipped to the bounds, it sums to `mass`; the bounds leave room for that.

    Bisection finds which are clipped; the factor of the others is then exact.
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
