"""Near-duplicate texts by MinHash, banding and exact Jaccard similarity, on arrays.

A text is represented by the set of its 5-word shingles. Texts whose MinHash signatures agree in a whole band are candidates
(Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4). Only pairs with an exact Jaccard
similarity of at least the threshold are kept, so nothing counts as a duplicate by chance. Pairs are joined into groups.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import rensa
from numpy.typing import NDArray

from divsel_ray.data.words import run_hashes

RUN_WORDS = 5
PERMUTATIONS = 128
CROWD = 1000
"""Largest bucket whose rows are all compared with each other; larger buckets are split by further bands first."""
_SEED = 0
_RECALL = 0.99
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shingle_set(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The distinct runs of five words of a text; a shorter text is a single run, an empty one has none.

    Args:
        words: (n,) word hashes.

    Returns:
        (m,) uint64 hashes, ascending.
    """
    return np.unique(run_hashes(words, min(RUN_WORDS, len(words))) if len(words) else words)


def jaccard(a: NDArray[np.unsignedinteger], b: NDArray[np.unsignedinteger]) -> float:
    """|a and b| / |a or b| of two sets, each given as distinct values; at least one must not be empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def signatures(sets: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """MinHash signatures: the share of equal entries of two rows estimates their Jaccard similarity.

    Args:
        sets: n sets of hashes, none empty.

    Returns:
        (n, 128) uint32.
    """
    if not sets:
        return np.empty((0, PERMUTATIONS), dtype=np.uint32)
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), offsets, PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def banding(threshold: float) -> tuple[int, int]:
    """Number of bands and signature entries per band: the longest bands that find 99 % of the pairs at the threshold.

    A pair of similarity s agrees in at least one of b bands of r entries with probability 1 - (1 - s^r)^b.
    """
    fitting = [r for r in range(1, PERMUTATIONS + 1) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= _RECALL]
    rows = max(fitting, default=1)
    return PERMUTATIONS // rows, rows


def band_keys(signature: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """One key per band and row, equal if all entries of the band are equal: (bands, n) uint64."""
    entries = signature[:, : bands * rows].reshape(len(signature), bands, rows).astype(np.uint64)
    keys = np.zeros((len(signature), bands), dtype=np.uint64)
    for row in range(rows):
        keys = (keys ^ entries[:, :, row]) * _MULTIPLIER
        keys ^= keys >> np.uint64(29)
    return np.ascontiguousarray(keys.T)


def buckets(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Positions of each key that occurs at least twice; ascending within a bucket."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    starts, stops = np.r_[0, ends], np.r_[ends, len(keys)]
    for bucket in np.flatnonzero(stops - starts > 1):
        yield order[starts[bucket] : stops[bucket]]


def thin_out(
    rows: NDArray[np.int64], further: Callable[[int, NDArray[np.int64]], NDArray[np.uint64]], depths: int, crowd: int = CROWD
) -> Iterator[NDArray[np.int64]]:
    """Split a bucket that is too large for all comparisons by the keys of further bands, as often as needed.

    Rows that agree in one band without being duplicates share boilerplate. Each further band in which they must agree
    leaves closer duplicates together. Rows that agree in all bands are almost surely duplicates: they are compared in
    pieces that share their first row.

    Args:
        rows: (m,) rows of the bucket.
        further: (depth, rows) to the keys of the rows in that further band.
        depths: number of further bands.
        crowd: largest bucket that is not split.

    Yields:
        Rows to compare with each other, at most `crowd` + 1 at a time.
    """
    waiting = [(rows, 0)]
    while waiting:
        bucket, depth = waiting.pop()
        if len(bucket) <= crowd:
            yield bucket
        elif depth == depths:
            yield from (np.r_[bucket[0], bucket[start : start + crowd]] for start in range(1, len(bucket), crowd))
        else:
            waiting += [(bucket[part], depth + 1) for part in buckets(further(depth, bucket))]


def alike_pairs(
    signature: NDArray[np.uint32],
    sizes: NDArray[np.int64],
    met: NDArray[np.uint64],
    set_of: Callable[[int], NDArray[np.unsignedinteger]],
    threshold: float,
) -> list[tuple[int, int]]:
    """Pairs of a bucket with a Jaccard similarity of at least `threshold`, enough to connect all rows that such pairs connect.

    A row is compared only with those not yet connected to an earlier one, so a bucket of m duplicates takes m comparisons
    and one of m dissimilar rows m (m - 1) / 2. Exact similarity is computed only if set sizes and signatures allow a match.

    Args:
        signature: (m, 128) signatures.
        sizes: (m,) sizes of the sets.
        met: (m, e) numbers, equal in a column for rows that have already been compared; such pairs are skipped.
        set_of: row to its set of distinct hashes.
        threshold: minimum similarity.
    """
    if (met == met[:1]).all(axis=0).any():
        return []
    # Four standard deviations of the estimate: 3 in 100,000 true pairs are missed.
    least = PERMUTATIONS * threshold - 4 * np.sqrt(PERMUTATIONS * threshold * (1 - threshold))
    left, connected, pairs = np.arange(len(sizes)), deque[int](), list[tuple[int, int]]()
    while len(left):
        row = connected.popleft() if connected else int(left[0])
        left = left[left != row]
        near = left[np.minimum(sizes[left], sizes[row]) >= threshold * np.maximum(sizes[left], sizes[row])]
        near = near[np.count_nonzero(signature[near] == signature[row], axis=1) >= least]
        near = near[~(met[near] == met[row]).any(axis=1)]
        own = set_of(row) if len(near) else None
        found = [int(other) for other in near if own is not None and jaccard(own, set_of(int(other))) >= threshold]
        pairs += [(row, other) for other in found]
        connected += found
        left = left[~np.isin(left, found)] if found else left
    return pairs


def smallest_connected(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of n nodes, the smallest node connected to it by a chain of pairs (or itself): (n,).

    Labels propagate along the edges and their trees are flattened by pointer jumping (Shiloach and Vishkin 1982), so the
    number of passes grows with the logarithm of n.

    Args:
        n: number of nodes.
        pairs: (m, 2) connected nodes.
    """
    label = np.arange(n)
    while True:
        ends = label[pairs]
        lowest = np.repeat(ends.min(axis=1), 2)
        falling = label.copy()
        np.minimum.at(falling, ends.ravel(), lowest)
        np.minimum.at(falling, pairs.ravel(), lowest)
        falling = falling[falling]
        if np.array_equal(falling, label):
            return label
        label = falling
