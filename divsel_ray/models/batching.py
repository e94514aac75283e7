"""Batches cut by tokens from one defined order, so that a batch never depends on who computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def token_batches(lengths: Sequence[int], keys: Sequence[str], budget: int) -> list[np.ndarray]:
    """Split items into batches of at most `budget` padded tokens, longest batch last.

    Items are ordered by (length, key): neighbours have like lengths, so little is padded, and the batches are the same
    whatever order the items come in.

    Args:
        lengths: (n,) tokens of each item.
        keys: (n,) names that break ties, e.g. row ids; unique.
        budget: padded tokens per batch; an item longer than this is a batch of its own.

    Returns:
        Index arrays that together hold 0..n-1 once each.

    Example:
        >>> [batch.tolist() for batch in token_batches([5, 1, 2], ["a", "b", "c"], budget=4)]
        [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], keys[i]))
    batches: list[list[int]] = []
    for index in order:
        padded = (len(batches[-1]) + 1) * lengths[index] if batches else budget + 1
        if padded > budget:
            batches.append([])
        batches[-1].append(index)
    return [np.array(batch) for batch in batches]
