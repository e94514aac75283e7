"""Samples of rows from a run's pool of any size: for the map, and for the portraits of clusters.

Parts of the pool are ranges of row ids, which are hashes, and are sorted by row id: the first rows of every part are an even
sample, and so is a subset of the parts. At most `FILES` parts are opened, one at a time, and vectors and texts are read only
up to the last requested row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from divsel_ray.data.hashing import id_array
from divsel_ray.report.records import StageRecord, existing

FILES = 256
_BATCH, _BUFFER = 1024, 1 << 20

Place = tuple[str, int]
"""File name of a part, and index of a row in it."""


@dataclass(frozen=True)
class Parts:
    """Folders whose files `names` contain the same rows in the same order; those of `quality`, if any, may lack some rows."""

    pool: Path
    embeddings: Path
    clusters: Path
    quality: Path | None
    names: Sequence[str]


def find_parts(stages: Mapping[str, StageRecord]) -> Parts | None:
    """At most `FILES` evenly spaced parts of a run; None if it has no vectors."""
    names = sorted(file.name for file in stages["embed"].folder.glob("*.parquet")) if "embed" in stages else []
    if not names:
        return None
    return Parts(
        pool=stages["clean" if "clean" in stages else "pool"].folder,
        embeddings=stages["embed"].folder,
        clusters=stages["cluster"].folder,
        quality=stages["quality"].folder if "quality" in stages else None,
        names=[names[at] for at in thin(len(names), FILES)],
    )


def thin(count: int, wanted: int) -> NDArray[np.int64]:
    """At most `wanted` evenly spaced positions among `count`, ascending."""
    kept = min(count, wanted)
    return np.arange(kept) * count // max(1, kept)


def first_places(parts: Parts, count: int) -> list[Place]:
    """The first rows of every part, equally many from each, at most `count` in total."""
    bounds = [count * at // len(parts.names) for at in range(len(parts.names) + 1)]
    wanted = zip(parts.names, np.diff(bounds).tolist(), strict=True)
    return [(name, row) for name, rows in wanted for row in range(min(rows, _rows_in(parts.clusters / name)))]


def places_of(parts: Parts, row_ids: NDArray[np.bytes_]) -> list[Place]:
    """Places of the rows with these ids, without those that are in none of the parts."""
    found: list[Place] = []
    for name in parts.names:
        ids = id_array(pq.read_table(existing(parts.clusters / name), columns=["row_id"])["row_id"])
        found += [(name, row) for row in np.flatnonzero(np.isin(ids, row_ids)).tolist()]
    return found


def read_at(folder: Path, columns: list[str], places: Iterable[Place]) -> pa.Table:
    """Read columns of the rows at one or more places, ordered by name and row.

    Raises:
        InputError: a file is missing.
    """
    wanted: dict[str, list[int]] = {}
    for name, row in places:
        wanted.setdefault(name, []).append(row)
    return pa.Table.from_batches(
        [batch for name, rows in sorted(wanted.items()) for batch in _batches(existing(folder / name), columns, np.unique(rows))]
    )


def _rows_in(path: Path) -> int:
    return int(pq.read_metadata(existing(path)).num_rows)


def _batches(path: Path, columns: list[str], rows: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    start = 0
    with pq.ParquetFile(path, buffer_size=_BUFFER) as file:
        for batch in file.iter_batches(_BATCH, columns=columns, use_threads=False):
            here = rows[(rows >= start) & (rows < start + len(batch))] - start
            if len(here):
                yield batch.take(pa.array(here))
            start += len(batch)
            if start > rows[-1]:
                return
