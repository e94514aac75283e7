"""Randomness that depends on the row and not on its place: a hash of seed, purpose and row id.

A draw made this way is the same whatever the order of the rows, the number of workers or the shape of the blocks.
Every purpose gets its own stream, so that two draws over the same rows are independent.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_HEX_DIGITS = 32


def uniform_hash(seed: int, purpose: str, row_ids: ArrayLike) -> NDArray[np.uint64]:
    """A uniform 64-bit integer per row.

    The two 64-bit words of the id are mixed, one after the other, with the two words of BLAKE2b(seed, purpose) by the
    finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).

    Args:
        seed: the job's seed.
        purpose: what the draw is for; another purpose gives an independent hash.
        row_ids: (n,) row ids, 32 hex digits each, as str or bytes.

    Returns:
        (n,) uint64.

    Raises:
        ValueError: a row id is not 32 hex digits.
    """
    words = _words(row_ids)
    key = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    first, second = np.frombuffer(key, dtype=">u8").astype(np.uint64)
    with np.errstate(over="ignore"):
        return _mix(_mix(words[:, 0] + first) ^ (words[:, 1] + second))


def _words(row_ids: ArrayLike) -> NDArray[np.uint64]:
    """The two big-endian 64-bit words of each id, (n, 2)."""
    ids = np.asarray(row_ids)
    if ids.size == 0:
        return np.empty((0, 2), dtype=np.uint64)
    text = np.ascontiguousarray(ids.astype("S33"))
    if np.any(np.char.str_len(text) != _HEX_DIGITS):
        raise ValueError("row ids must be 32 hex digits")
    digits = text.view(np.uint8).reshape(len(text), -1)[:, :_HEX_DIGITS]
    values = _NIBBLES[digits]
    if np.any(values > 15):
        raise ValueError("row ids must be 32 hex digits")
    packed = (values[:, 0::2] << 4) | values[:, 1::2]
    return np.ascontiguousarray(packed).view(">u8").astype(np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _nibble_table() -> NDArray[np.uint8]:
    table = np.full(256, 255, dtype=np.uint8)
    for value, digit in enumerate(b"0123456789abcdef"):
        table[digit] = value
    return table


_NIBBLES = _nibble_table()
