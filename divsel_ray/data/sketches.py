"""Sketches of a pool's rows on disk: one folder per pool file, read by seeking, never all at once.

A sketch contains what the search for near duplicates needs: row id, MinHash signature, band keys and the set of word runs.
It takes about 750 bytes on disk, plus 4 per word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from divsel_ray.data.near_duplicates import band_keys, shingle_set, signatures

_ROWS, _IDS, _SIGNATURES, _BANDS = "rows", "ids", "signatures", "bands"
_RUNS, _OFFSETS = "runs", "offsets"


def write_sketches(
    folder: Path, rows: Sequence[int], row_ids: Sequence[str], words: Sequence[NDArray[np.uint64]], bands: tuple[int, int]
) -> None:
    """Write the sketches of one pool file; rows without words have none.

    Args:
        folder: existing folder without sketches.
        rows: (n,) ascending row numbers in the pool file.
        row_ids: (n,) ids of these rows.
        words: n texts as word hashes.
        bands: number of bands and entries per band, from `near_duplicates.banding`.
    """
    kept = [place for place, text in enumerate(words) if len(text)]
    sets = [shingle_set(words[place]) for place in kept]
    signature = signatures(sets)
    # The upper half of a hash distinguishes the runs of two texts equally well, at half the size.
    halves = [np.unique((runs >> np.uint64(32)).astype(np.uint32)) for runs in sets]
    arrays = {
        _ROWS: np.array([rows[place] for place in kept], dtype=np.int64),
        _IDS: np.array([row_ids[place] for place in kept], dtype="S32"),
        _SIGNATURES: signature,
        _BANDS: band_keys(signature, *bands),
        _RUNS: np.concatenate([np.empty(0, np.uint32), *halves]),
        _OFFSETS: np.cumsum([0, *map(len, halves)], dtype=np.int64),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def count_sketches(folders: Sequence[Path]) -> NDArray[np.int64]:
    """Position of each folder's first row, followed by the total number of rows: (n_folders + 1,)."""
    counts = [len(np.load(folder / f"{_ROWS}.npy", mmap_mode="r", allow_pickle=False)) for folder in folders]
    return np.cumsum([0, *counts], dtype=np.int64)


class Sketches:
    """The sketches of several folders as one table; rows are identified by their position in it.

    Args:
        folders: folders filled by `write_sketches`.
        starts: result of `count_sketches`.
    """

    def __init__(self, folders: Sequence[Path], starts: NDArray[np.int64]) -> None:
        self._folders, self.starts = folders, starts
        self._open = functools.lru_cache(maxsize=4096)(self._map)

    def _map(self, part: int, name: str) -> NDArray:
        # A plain view: slicing a memmap object is ten times as slow.
        return np.load(self._folders[part] / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)

    def keys(self, band: int) -> Iterator[NDArray[np.uint64]]:
        """The keys of one band, folder by folder."""
        return (self._open(part, _BANDS)[band] for part in range(len(self._folders)))

    def keys_of(self, band: int, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The keys of one band for some rows, (n,)."""
        return self._gather(lambda part: self._open(part, _BANDS)[band], places)

    def ids_of(self, places: NDArray[np.int64]) -> NDArray[np.bytes_]:
        """The row ids of some rows, (n,) of 32 hex digits."""
        return self._gather(lambda part: self._open(part, _IDS), places)

    def signatures_of(self, places: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The signatures of some rows, (n, 128)."""
        return self._gather(lambda part: self._open(part, _SIGNATURES), places)

    def sizes_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of distinct runs of some rows, (n,)."""
        return self._gather(lambda part: np.diff(self._open(part, _OFFSETS)), places)

    def runs_of(self, place: int) -> NDArray[np.uint32]:
        """The distinct runs of one row, ascending."""
        part = int(np.searchsorted(self.starts, place, side="right")) - 1
        row = place - int(self.starts[part])
        begin, end = self._open(part, _OFFSETS)[row : row + 2]
        return np.asarray(self._open(part, _RUNS)[begin:end])

    def rows(self, part: int) -> NDArray[np.int64]:
        """Row numbers of one folder's rows in their pool file."""
        return np.asarray(self._open(part, _ROWS))

    def _gather(self, column: Callable[[int], NDArray], places: NDArray[np.int64]) -> NDArray:
        parts = np.searchsorted(self.starts, places, side="right") - 1
        first = column(0)
        gathered = np.empty((len(places), *first.shape[1:]), dtype=first.dtype)
        for part in np.unique(parts):
            mine = parts == part
            gathered[mine] = column(int(part))[places[mine] - self.starts[part]]
        return gathered
