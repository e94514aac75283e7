"""Near duplicates of a whole pool, on files: from the sketches of its rows to who goes and who stays.

1. `write_starts`: how many rows there are.
2. `write_crowds`, a task for each band: rows whose bucket is too large to compare all with all.
3. `write_pairs`, a task for each band: pairs of near duplicates that agree in it.
4. `write_twins`: groups of them, and the row of each that stays.

Of a group the row with the smallest id stays. Ids are hashes of the text, so it is any of them, and the same one however
the pool is cut into files.
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
    """Where the files of a search for near duplicates lie.

    Attributes:
        folder: of what is written here.
        sketches: folders of the sketches, one for each pool file.
        threshold: least Jaccard similarity of near duplicates.
        pieces: into how many equal ranges the keys of a band are cut; a task holds about 40 bytes for each row in one.
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
        """Where each pool file's sketches begin among all."""
        return self.folder / "starts.npy"

    @property
    def twins(self) -> Path:
        """Every near duplicate that goes, with the row that stays."""
        return self.folder / "twins.npy"

    def crowds(self, band: int, piece: int) -> Path:
        """Rows of the buckets that are too large."""
        return self.folder / f"crowds-{band:03d}-{piece:05d}.npy"

    def pairs(self, band: int, piece: int) -> Path:
        """Near duplicates that agree in one band."""
        return self.folder / f"pairs-{band:03d}-{piece:05d}.npy"

    def tasks(self) -> list[tuple[int, int]]:
        """Every band and piece."""
        return [(band, piece) for band in range(self.bands) for piece in range(self.pieces)]

    def load(self) -> Sketches:
        """The sketches of all rows, once they are counted."""
        return Sketches(self.sketches, np.load(self.starts, allow_pickle=False))


@dataclass(frozen=True)
class Twin:
    """A near duplicate that goes.

    Attributes:
        kept: id of the row that stays.
        jaccard: its similarity to that row; below the threshold where rows in between link them.
    """

    kept: str
    jaccard: float


def write_starts(files: TwinFiles) -> int:
    """Count the sketches of all pool files; returns how many there are. Done once."""
    if not files.starts.exists():
        write_array(files.starts, count_sketches(files.sketches))
    return int(np.load(files.starts, allow_pickle=False)[-1])


def write_crowds(files: TwinFiles, band: int, piece: int) -> None:
    """Write the places of all rows in buckets larger than `CROWD`, ascending. Done once."""
    if not files.crowds(band, piece).exists():
        keys, places = _keys_within(files.load(), band, piece, files.pieces)
        crowds = [places[bucket] for bucket in buckets(keys) if len(bucket) > CROWD]
        write_array(files.crowds(band, piece), np.sort(np.concatenate([np.empty(0, np.int64), *crowds])))


def write_pairs(files: TwinFiles, band: int, piece: int) -> None:
    """Write the near duplicates among rows that agree in one band, as pairs of places. Done once."""
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
        # The key's upper half times the number of pieces: which of the equal ranges it falls into.
        within = np.flatnonzero(((column >> np.uint64(32)) * np.uint64(pieces)) >> np.uint64(32) == piece)
        keys.append(column[within])
        places.append(within + start)
    return np.concatenate(keys), np.concatenate(places)


def _compared(files: TwinFiles, sketches: Sketches, band: int, piece: int) -> Iterator[NDArray[np.int64]]:
    """The rows to compare with each other, a bucket or a part of a crowd at a time."""
    keys, places = _keys_within(sketches, band, piece, files.pieces)

    def further(depth: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Keys of the rows in a band after this one, the first following the last."""
        return sketches.keys_of((band + 1 + depth) % files.bands, rows)

    for bucket in buckets(keys):
        yield from thin_out(places[bucket], further, files.bands - 1, CROWD)


def _batches(compared: Iterator[NDArray[np.int64]]) -> Iterator[list[NDArray[np.int64]]]:
    """Buckets whose sketches are read together."""
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
    # Of a crowd not all rows were compared: there, no two count as met.
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
    """Join pairs into groups and write who goes and who stays, by place. Done once. About 100 bytes for each pair."""
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
    """The near duplicates that go of one pool file: row number to the row that stays."""
    twins, sketches = np.load(files.twins, mmap_mode="r", allow_pickle=False), files.load()
    start, stop = sketches.starts[part : part + 2]
    begin, end = np.searchsorted(twins["place"], [start, stop])
    mine, rows = np.asarray(twins[begin:end]), sketches.rows(part)
    kept = sketches.ids_of(mine["kept"])
    return {
        int(rows[place - start]): Twin(row_id.decode(), jaccard(sketches.runs_of(place), sketches.runs_of(stays)))
        for (place, stays), row_id in zip(mine.tolist(), kept, strict=True)
    }
