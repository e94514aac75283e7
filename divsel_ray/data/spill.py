"""A file of rows split into partitions: the output of a parsing task, read by every partition task.

The rows of a chunk are written partition after partition as Arrow record batches, with an index of where each begins.
There is one data file and one index per input file regardless of the number of partitions: at most one file is open at a
time, and a partition is read by seeking. (The layout of Spark's sort-based shuffle.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "position": pa.int64(),
        "score": pa.float64(),
    }
)
CHUNK_BYTES = 32 << 20
"""Text held in memory before it is written."""
_DATA, _INDEX = "rows.arrow", "index.npy"


def partition_of(row_id: str, n_partitions: int) -> int:
    """The partition of a row: equal ranges of the id's first 32 bits, so that partitions in order are ids in order."""
    return int(row_id[:8], 16) * n_partitions >> 32


class SpillWriter:
    """Writes rows, each to its partition, with memory bounded by one chunk. A context manager.

    A row whose id is already in the chunk is counted in `duplicates` and dropped: the first is kept, with the larger score.
    """

    def __init__(self, folder: Path, n_partitions: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.duplicates = 0
        self._folder, self._n_partitions, self._chunk_bytes = folder, n_partitions, chunk_bytes
        self._rows: dict[str, dict[str, Any]] = {}
        self._bytes = 0
        self._index: list[list[int]] = []

    def __enter__(self) -> Self:
        self._stream = (self._folder / _DATA).open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
            index = np.array(self._index, dtype=np.int64).reshape(-1, self._n_partitions + 1)
            np.save(self._folder / _INDEX, index, allow_pickle=False)
        self._stream.close()

    def add(self, row: dict[str, Any]) -> None:
        """Add one row with the columns of `SCHEMA`."""
        if (first := self._rows.get(row["row_id"])) is not None:
            self.duplicates += 1
            first["score"] = max((one for one in (first["score"], row["score"]) if one is not None), default=None)
            return
        self._rows[row["row_id"]] = row
        self._bytes += 200 + sum(len(message["content"]) for message in row["messages"])
        if self._bytes >= self._chunk_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        parts: list[list[dict[str, Any]]] = [[] for _ in range(self._n_partitions)]
        for row_id, row in self._rows.items():
            parts[partition_of(row_id, self._n_partitions)].append(row)
        offsets = [self._stream.tell()]
        for part in parts:
            if part:
                self._stream.write(pa.RecordBatch.from_pylist(part, schema=SCHEMA).serialize())
            offsets.append(self._stream.tell())
        self._index.append(offsets)
        self._rows, self._bytes = {}, 0


def read_partition(folder: Path, partition: int) -> Iterator[pa.RecordBatch]:
    """The batches of one partition, in the order in which their rows were added."""
    index = np.load(folder / _INDEX, mmap_mode="r", allow_pickle=False) if (folder / _INDEX).stat().st_size else None
    if index is None:
        return
    with (folder / _DATA).open("rb") as stream:
        for begin, end in index[:, partition : partition + 2]:
            if end > begin:
                stream.seek(int(begin))
                yield pa.ipc.read_record_batch(pa.py_buffer(stream.read(int(end - begin))), SCHEMA)
