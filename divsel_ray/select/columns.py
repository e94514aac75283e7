"""Columns of many Parquet files, aligned by row id and never by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.data.hashing import id_array


class PoolColumns:
    """The rows of the pool in ascending order of their ids, and reading of columns in that order.

    Stages write their files in this order, so sorting and searching are needed only for files that deviate from it.
    Files are read one at a time: memory is that of the arrays plus one file.

    Args:
        files: Parquet with row_id; their rows form the pool.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.row_ids = np.empty(sum(pq.read_metadata(file).num_rows for file in files), "S32")
        at = 0
        for file in files:
            ids = id_array(pq.read_table(file, columns=["row_id"])["row_id"])
            self.row_ids[at : at + len(ids)] = ids
            at += len(ids)
        if (self.row_ids[1:] <= self.row_ids[:-1]).any():
            self.row_ids.sort()

    def read(self, files: Sequence[str], name: str, dtype: Any, missing: Any) -> np.ndarray:
        """A numeric column, (n,) in the order of `row_ids`; `missing` where no file contains the row or its value is null."""
        values = np.full(len(self.row_ids), missing, dtype)
        for place, column in self._columns(files, name):
            numbers = column.combine_chunks()
            known = numbers.is_valid().to_numpy(zero_copy_only=False)
            values[place[known]] = numbers.drop_null().to_numpy(zero_copy_only=False)
        return values

    def read_texts(self, files: Sequence[str], name: str) -> np.ndarray:
        """A text column with few distinct values, (n,) objects in the order of `row_ids`; empty where no file has the row."""
        values = np.full(len(self.row_ids), "", object)
        for place, column in self._columns(files, name):
            values[place] = column.to_numpy(zero_copy_only=False)
        return values

    def read_vectors(self, files: Sequence[str], mask: np.ndarray) -> np.ndarray:
        """Vectors of the rows selected by a mask, (m, d) float16, in the order of `row_ids`."""
        target = np.cumsum(mask) - 1
        vectors = np.zeros((int(mask.sum()), self.dimension(files)), np.float16)
        for place, column in self._columns(files, "embedding"):
            kept = mask[place]
            flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors[target[place[kept]]] = flat.reshape(len(place), -1)[kept]
        return vectors

    @staticmethod
    def dimension(files: Sequence[str]) -> int:
        """Number of dimensions of the vectors."""
        return int(pq.read_schema(files[0]).field("embedding").type.list_size)

    def _columns(self, files: Sequence[str], name: str) -> Iterator[tuple[np.ndarray, pa.ChunkedArray]]:
        """For each file: positions of its rows in the pool, and the column; rows outside the pool are skipped."""
        at = 0
        for file in files:
            table = pq.read_table(file, columns=["row_id", name])
            ids = id_array(table["row_id"])
            if np.array_equal(self.row_ids[at : at + len(ids)], ids):
                place = np.arange(at, at + len(ids))
            else:
                place = np.minimum(np.searchsorted(self.row_ids, ids), len(self.row_ids) - 1)
                ours = self.row_ids[place] == ids
                place, table = place[ours], table.filter(pa.array(ours))
            at += len(ids)
            if len(place):
                yield place, table[name]
