"""Where the vectors come from: Parquet files, cut into contiguous partitions of the global row order.

The global order is files as listed, rows as stored. A file holds `row_id` (string) and `embedding` (fixed-size list of
halffloat, float or double).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.cluster.kernels import Rows
from divsel_ray.errors import InputError


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` (exclusive) of one Parquet file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Partition:
    """Consecutive rows, the first of which has global number `first`."""

    first: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Files:
    """Checked embedding files: paths, rows of each, and the dimension of the vectors."""

    paths: tuple[str, ...]
    counts: tuple[int, ...]
    dimension: int

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(self.counts)


def list_files(source: str | Path | Sequence[str | Path]) -> list[str]:
    """The Parquet files of a folder in name order, or the paths of a list as given.

    Raises:
        InputError: there is no such folder or file, or no Parquet file in it.
    """
    if not isinstance(source, (str, Path)):
        paths = [str(path) for path in source]
    elif Path(source).is_dir():
        paths = [str(path) for path in sorted(Path(source).glob("*.parquet"))]
    else:
        paths = [str(source)]
    if not paths:
        raise InputError(f"{source}: no Parquet file; expected files with columns row_id and embedding")
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file or folder; expected Parquet files with columns row_id and embedding")
    return paths


def check_files(paths: Sequence[str]) -> Files:
    """Read the footers only, and check that all files hold vectors of one dimension.

    Raises:
        InputError: a file is not Parquet, lacks a column, or its vectors have another type or dimension.
    """
    counts, dimensions = [], []
    for path in paths:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: not a Parquet file: {' '.join(str(error).split())}") from None
        with file:
            counts.append(file.metadata.num_rows)
            dimensions.append(_dimension(path, file.schema_arrow))
    for path, dimension in zip(paths, dimensions, strict=True):
        if dimension != dimensions[0]:
            raise InputError(
                f"{path}: vectors have {dimension} dimensions, those of {paths[0]} have {dimensions[0]}; embed again"
            )
    return Files(tuple(paths), tuple(counts), dimensions[0])


def _dimension(path: str, schema: Any) -> int:
    missing = {"row_id", "embedding"} - set(schema.names)
    if missing:
        raise InputError(f"{path}: no column {min(missing)}; expected row_id and embedding")
    kind = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type) or kind.list_size < 1:
        raise InputError(f"{path}: embedding is {kind}; expected a fixed-size list of halffloat or float")
    return int(kind.list_size)


def bounds(rows: int, parts: int) -> list[tuple[int, int]]:
    """`rows` cut into at most `parts` contiguous ranges `(start, stop)` of nearly equal length, none empty."""
    parts = min(parts, rows)
    return [(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]


def partition(files: Files, parts: int) -> list[Partition]:
    """Cut the rows of all files into at most `parts` contiguous partitions."""
    return [Partition(start, tuple(_segments(files, start, stop))) for start, stop in bounds(files.rows, parts)]


def _segments(files: Files, start: int, stop: int) -> Iterator[Segment]:
    offset = 0
    for path, count in zip(files.paths, files.counts, strict=True):
        low, high = max(start - offset, 0), min(stop - offset, count)
        if low < high:
            yield Segment(path, low, high)
        offset += count


def read(part: Partition) -> Rows:
    """The vectors (n, d) of a partition, in float16 where every file stores halffloat, else float32.

    A missing vector is read as NaN, so that it is reported with its row.
    """
    return np.concatenate([to_matrix(_read_column(segment, "embedding")) for segment in part.segments])


def _read_column(segment: Segment, column: str) -> Any:
    """Only the row groups that overlap the segment are read."""
    with pq.ParquetFile(segment.path) as file:
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        starts = np.concatenate([[0], ends[:-1]])
        groups = np.flatnonzero((ends > segment.start) & (starts < segment.stop))
        table = file.read_row_groups([int(group) for group in groups], columns=[column])
    values = table.column(column).slice(segment.start - int(starts[groups[0]]), segment.stop - segment.start)
    return values.combine_chunks()


def to_matrix(column: Any) -> Rows:
    """A fixed-size list array of length n as a matrix (n, d), float16 or float32; missing vectors and values become NaN."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    halves = column.type.value_type == pa.float16()
    matrix = np.full((len(column), column.type.list_size), np.nan, np.float16 if halves else np.float32)
    valid = ~column.is_null().to_numpy(zero_copy_only=False)
    values = column.drop_null().flatten()
    with np.errstate(over="ignore"):
        matrix[valid] = values.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return matrix


def name_row(files: Files, index: int) -> str:
    """How to call a row in a message: its file, number in the file and row id.

    Args:
        files: the checked files.
        index: global row number.
    """
    segment = next(_segments(files, index, index + 1))
    return f"{segment.path}: row {segment.start} (row_id {_read_column(segment, 'row_id')[0].as_py()})"
