"""First iterations on growing nested samples: early centroids are poor, so a few rows place them as well as all rows do.

A sample consists of the rows whose hashed number falls below a share, so each contains the one before, in any layout of the
partitions (similar to the nested mini-batches of Newling and Fleuret 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from divsel_ray.cluster.initialise import Draw, Purpose, uniforms
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import Shards, add

SAMPLE_ROWS_PER_CLUSTER = 16
"""Rows per cluster in the first sample; with fewer, centroids settle on noise."""
GROWTH = 4
LARGEST_SHARE = 1 / 8
"""Largest sample: samples are copies, and a larger one would need too much memory."""
MOST_ITERATIONS = 8
"""Maximum number of iterations on one sample."""


def shares(rows: int, k: int) -> tuple[float, ...]:
    """Shares of the rows to iterate on, one after the other, before all of them."""
    sizes = []
    share = SAMPLE_ROWS_PER_CLUSTER * k / rows
    while share <= LARGEST_SHARE:
        sizes.append(share)
        share *= GROWTH
    return tuple(sizes)


def settled(history: Sequence[Any], movement: float) -> bool:
    """Whether the next sample is due: the current one has used up its iterations, or gains less than 1 %.

    Args:
        history: iterations so far, each with `rows` and `inertia`.
        movement: squared movement of the last iteration, relative to the variance.
    """
    same = [step for step in history if step.rows == history[-1].rows]
    gained = len(same) > 1 and same[-1].inertia > 0.99 * same[-2].inertia
    return len(same) >= MOST_ITERATIONS or gained or movement == 0


def view(shards: Shards, seed: int, share: float) -> Shards:
    """A sample of the rows; all rows if the share is 1."""
    return shards if share >= 1 else _Sample(shards, seed, share)


class _Sample:
    """Forwards each question to samples of the partitions."""

    def __init__(self, shards: Shards, seed: int, share: float) -> None:
        self._shards, self._seed, self._share = shards, seed, share

    def map(self, question: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """See `shards.Shards`."""
        return self._shards.map(_ask, self._seed, self._share, question, *args, **kwargs)

    def total(self, question: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `shards.Shards`."""
        return add(self.map(question, *args, **kwargs))


def forget(shard: Shard) -> None:
    """Free the sample of a partition."""
    shard.memory.pop("sample", None)


def _ask(shard: Shard, seed: int, share: float, question: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if shard.memory.get("sample", (None, None))[0] != (seed, share):
        at = np.flatnonzero(uniforms(Draw(seed, 0, Purpose.SAMPLE, 0), shard.numbers) < share)
        shard.memory["sample"] = (seed, share), shard.sample(at)
    return question(shard.memory["sample"][1], *args, **kwargs)
