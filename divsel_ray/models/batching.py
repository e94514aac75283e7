"""Padded batches, cut by tokens in a fixed order so that a batch does not depend on the worker that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np


def token_batches(lengths: Sequence[int], keys: Sequence[str], budget: int) -> list[np.ndarray]:
    """Split items into batches of at most `budget` padded tokens, longest batch last.

    Items are ordered by (length, key): neighbours have similar lengths, so there is little padding, and the batches do not
    depend on the order of the items.

    Args:
        lengths: (n,) number of tokens of each item.
        keys: (n,) unique names that break ties, e.g. row ids.
        budget: padded tokens per batch; a longer item gets its own batch.

    Returns:
        Index arrays that together contain each of 0..n-1 once.

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


def pad_ids(batch: Sequence[Sequence[int]], padding: int, *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pad token ids to the longest sequence; returns them and a mask that is 0 at padding, each (n, longest) int64.

    Args:
        batch: n > 0 sequences of token ids.
        padding: id to pad with.
        left: pad on the left instead of on the right.

    Example:
        >>> [array.tolist() for array in pad_ids([[5, 6], [7]], padding=0)]
        [[[5, 6], [7, 0]], [[1, 1], [1, 0]]]
    """
    lengths = np.array([len(ids) for ids in batch])
    places = np.arange(lengths.max())
    mask = places >= places.size - lengths[:, None] if left else places < lengths[:, None]
    padded = np.full(mask.shape, padding, np.int64)
    padded[mask] = np.fromiter(chain.from_iterable(batch), np.int64, lengths.sum())
    return padded, mask.astype(np.int64)
