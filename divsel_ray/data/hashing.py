"""Randomness that depends on the row and not on its position: a hash of seed, purpose and row id.

Such draws do not depend on the order of the rows, the number of workers or the shape of the blocks. Every purpose has its
own stream, so that two draws over the same rows are independent.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

_HEX_DIGITS = 32
_CHUNK = 1 << 20
"""Rows hashed at a time: intermediate steps need ten times the memory of the result."""


def uniform_hash(seed: int, purpose: str, row_ids: ArrayLike) -> NDArray[np.uint64]:
    """A uniform 64-bit integer per row.

    The two 64-bit words of the id are mixed in turn with the two words of BLAKE2b(seed, purpose) by the SplitMix64 finaliser.

    Args:
        seed: the job's seed.
        purpose: purpose of the draw; different purposes give independent hashes.
        row_ids: (n,) row ids, 32 hex digits each, as str or bytes.

    Returns:
        (n,) uint64.

    Raises:
        ValueError: a row id is not 32 hex digits.
    """
    ids = np.asarray(row_ids)
    key = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    first, second = np.frombuffer(key, dtype=">u8").astype(np.uint64)
    hashes = np.empty(len(ids), np.uint64)
    for begin in range(0, len(ids), _CHUNK):
        words = _words(ids[begin : begin + _CHUNK])
        with np.errstate(over="ignore"):
            hashes[begin : begin + _CHUNK] = finalise(finalise(words[:, 0] + first) ^ (words[:, 1] + second))
    return hashes


def finalise(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser: every bit of the resulting 64-bit words depends on all bits of the input word.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def id_array(column: pa.ChunkedArray | pa.Array) -> NDArray[np.bytes_]:
    """Row ids of a Parquet column as bytes of 32 characters, (n,), without creating a Python object per id.

    Raises:
        ValueError: an id is null or has another length.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_id_bytes(chunk) for chunk in chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.array([], "S32")


def _id_bytes(chunk: pa.Array) -> NDArray[np.bytes_]:
    text = chunk.cast(pa.string())
    offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]
    if text.null_count or (np.diff(offsets) != _HEX_DIGITS).any():
        raise ValueError("row ids must be 32 hex digits")
    return np.frombuffer(text.buffers()[2], "S32", count=len(text), offset=int(offsets[0]))


def _words(row_ids: NDArray[Any]) -> NDArray[np.uint64]:
    """The two big-endian 64-bit words of each id, (n, 2)."""
    if row_ids.size == 0:
        return np.empty((0, 2), dtype=np.uint64)
    ids = row_ids if row_ids.dtype == "S32" else row_ids.astype("S33")
    text = np.ascontiguousarray(ids).view(np.uint8).reshape(len(ids), -1)
    pairs = np.ascontiguousarray(text[:, :_HEX_DIGITS]).view(np.uint16)
    values = _PAIRS[pairs]
    # A shorter id ends in NULs, which are not digits.
    if values.min() < 0 or text[:, _HEX_DIGITS:].any():
        raise ValueError("row ids must be 32 hex digits")
    return values.astype(np.uint8).view(">u8").astype(np.uint64)


def _pair_table() -> NDArray[np.int16]:
    """Table from two hex digits, as stored in memory, to the byte they encode; -1 for other characters."""
    table = np.full(1 << 16, -1, dtype=np.int16)
    digits = b"0123456789abcdef"
    for value in range(256):
        table[np.frombuffer(bytes([digits[value >> 4], digits[value & 15]]), np.uint16)[0]] = value
    return table


_PAIRS = _pair_table()
