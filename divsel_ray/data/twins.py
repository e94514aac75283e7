"""Near duplicates of a whole pool, on files: from the sketches of its rows to the rows removed and kept.

1. `write_starts`: counts the rows.
2. `write_crowds`, one task per band: rows whose bucket is too large for comparing all pairs.
3. `write_pairs`, one task per band: pairs of near duplicates that agree in it.
4. `write_twins`: groups of near duplicates, and the kept row of each.

The row with the smallest id of a group is kept. Ids are hashes of the text, so the choice is arbitrary but independent of
how the pool is split into files.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from divsel_ray.data.near_duplicates import CROWD, alike_pairs, banding, buckets, jaccard, smallest_connected, thin_out
from divsel_ray.data.sketches import Sketches, count_sketches
from divsel_ray.store import write_array

_TWIN = np.dtype([("place", "<i8"), ("kept", "<i8")])
_BATCH_ROWS = 1 << 14


@dataclass(frozen=True)
class TwinFiles:
    """Locations of the files of a search for near duplicates.

    Attributes:
        folder: output folder.
        sketches: folders of the sketches, one per pool file.
        threshold: minimum Jaccard similarity of near duplicates.
        pieces: number of equal ranges into which the keys of a band are split; a task holds about 40 bytes per row of one.
    """

    folder: Path
    sketches: tuple[Path, ...]
    threshold: float
    pieces: int = 1

    @property
    def bands(self) -> int:
        """Number of bands."""
        return banding(self.threshold)[0]

    @property
    def starts(self) -> Path:
        """Position of each pool file's first sketch among all."""
        return self.folder / "starts.npy"

    @property
    def twins(self) -> Path:
        """Every removed near duplicate, with the row kept instead."""
        return self.folder / "twins.npy"

    def crowds(self, band: int, piece: int) -> Path:
        """Rows of buckets that are too large."""
        return self.folder / f"crowds-{band:03d}-{piece:05d}.npy"

    def pairs(self, band: int, piece: int) -> Path:
        """Near duplicates that agree in one band."""
        return self.folder / f"pairs-{band:03d}-{piece:05d}.npy"

    def tasks(self) -> list[tuple[int, int]]:
        """Every band and piece."""
        return [(band, piece) for band in range(self.bands) for piece in range(self.pieces)]

    def load(self) -> Sketches:
        """The sketches of all rows; they must have been counted."""
        return Sketches(self.sketches, np.load(self.starts, allow_pickle=False))


@dataclass(frozen=True)
class Twin:
    """A removed near duplicate.

    Attributes:
        kept: id of the row kept instead.
        jaccard: similarity to that row; may be below the threshold if rows in between link them.
    """

    kept: str
    jaccard: float


def write_starts(files: TwinFiles) -> int:
    """Count the sketches of all pool files; returns the total. Skipped if already done."""
    if not files.starts.exists():
        write_array(files.starts, count_sketches(files.sketches))
    return int(np.load(files.starts, allow_pickle=False)[-1])


def write_crowds(files: TwinFiles, band: int, piece: int) -> None:
    """Write the positions of all rows in buckets larger than `CROWD`, ascending. Skipped if already done."""
    if not files.crowds(band, piece).exists():
        keys, places = _keys_within(files.load(), band, piece, files.pieces)
        crowds = [places[bucket] for bucket in buckets(keys) if len(bucket) > CROWD]
        write_array(files.crowds(band, piece), np.sort(np.concatenate([np.empty(0, np.int64), *crowds])))


def write_pairs(files: TwinFiles, band: int, piece: int) -> None:
    """Write the near duplicates among rows that agree in one band, as pairs of positions. Skipped if already done."""
    if files.pairs(band, piece).exists():
        return
    sketches, pairs = files.load(), [np.empty((0, 2), np.int64)]
    crowds = [
        np.concatenate([np.load(files.crowds(earlier, piece), allow_pickle=False) for piece in range(files.pieces)])
        for earlier in range(band)
    ]
    for batch in _batches(_compared(files, sketches, band, piece)):
        together = np.concatenate(batch)
        met = [_met(sketches, earlier, together, crowd) for earlier, crowd in enumerate(crowds)]
        before = np.stack(met, axis=1) if met else np.empty((len(together), 0), np.uint64)
        pairs += _pairs_among(sketches, batch, before, files.threshold)
    write_array(files.pairs(band, piece), np.concatenate(pairs))


def _keys_within(sketches: Sketches, band: int, piece: int, pieces: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    keys, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for start, column in zip(sketches.starts, sketches.keys(band), strict=False):
        # The key's upper half times the number of pieces gives the range it falls into.
        within = np.flatnonzero(((column >> np.uint64(32)) * np.uint64(pieces)) >> np.uint64(32) == piece)
        keys.append(column[within])
        places.append(within + start)
    return np.concatenate(keys), np.concatenate(places)


def _compared(files: TwinFiles, sketches: Sketches, band: int, piece: int) -> Iterator[NDArray[np.int64]]:
    """The rows to compare with each other, one bucket or part of a crowd at a time."""
    keys, places = _keys_within(sketches, band, piece, files.pieces)

    def further(depth: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Keys of the rows in a later band, wrapping around to the first after the last."""
        return sketches.keys_of((band + 1 + depth) % files.bands, rows)

    for bucket in buckets(keys):
        yield from thin_out(places[bucket], further, files.bands - 1, CROWD)


def _batches(compared: Iterator[NDArray[np.int64]]) -> Iterator[list[NDArray[np.int64]]]:
    """Groups of buckets whose sketches are read together."""
    batch, rows = list[NDArray[np.int64]](), 0
    for bucket in compared:
        batch.append(bucket)
        rows += len(bucket)
        if rows >= _BATCH_ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _met(sketches: Sketches, band: int, places: NDArray[np.int64], crowd: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number per row, equal for rows that were compared in an earlier band."""
    keys = sketches.keys_of(band, places)
    # Not all rows of a crowd were compared, so none of them count as met.
    return np.where(np.isin(places, crowd), ~places.astype(np.uint64), keys)


def _pairs_among(
    sketches: Sketches, batch: list[NDArray[np.int64]], met: NDArray[np.uint64], threshold: float
) -> Iterator[NDArray[np.int64]]:
    together, start = np.concatenate(batch), 0
    signature, sizes = sketches.signatures_of(together), sketches.sizes_of(together)
    for rows in batch:
        here = slice(start, start := start + len(rows))
        found = alike_pairs(signature[here], sizes[here], met[here], functools.partial(_runs_at, sketches, rows), threshold)
        yield rows[np.array(found, dtype=np.int64).reshape(-1, 2)]


def _runs_at(sketches: Sketches, rows: NDArray[np.int64], position: int) -> NDArray[np.uint32]:
    return sketches.runs_of(int(rows[position]))


def write_twins(files: TwinFiles) -> None:
    """Join pairs into groups and write removed and kept rows by position; skipped if done. About 100 bytes per pair."""
    if files.twins.exists():
        return
    pairs = np.concatenate([np.load(files.pairs(*task), allow_pickle=False) for task in files.tasks()])
    places, ends = np.unique(pairs, return_inverse=True)
    by_id = np.argsort(files.load().ids_of(places), kind="stable")
    # Nodes are numbered by row id, so that the smallest node of a group is the smallest id.
    number = np.empty_like(by_id)
    number[by_id] = np.arange(len(by_id))
    label = smallest_connected(len(places), number[ends].reshape(-1, 2))
    going = np.flatnonzero(label != np.arange(len(label)))
    twins = np.empty(len(going), dtype=_TWIN)
    twins["place"], twins["kept"] = places[by_id[going]], places[by_id[label[going]]]
    write_array(files.twins, np.sort(twins, order="place"))


def twins_of(files: TwinFiles, part: int) -> dict[int, Twin]:
    """The near duplicates removed from one pool file: row number to the row kept instead."""
    twins, sketches = np.load(files.twins, mmap_mode="r", allow_pickle=False), files.load()
    start, stop = sketches.starts[part : part + 2]
    begin, end = np.searchsorted(twins["place"], [start, stop])
    mine, rows = np.asarray(twins[begin:end]), sketches.rows(part)
    kept = sketches.ids_of(mine["kept"])
    return {
        int(rows[place - start]): Twin(row_id.decode(), jaccard(sketches.runs_of(place), sketches.runs_of(stays)))
        for (place, stays), row_id in zip(mine.tolist(), kept, strict=True)
    }
