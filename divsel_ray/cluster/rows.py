"""Sources of vectors: Parquet files, cut into contiguous partitions of the global row order.

The global order is that of the files as listed and the rows as stored. A file has the columns `row_id` (string) and
`embedding` (fixed-size list of halffloat, float or double).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from divsel_ray.cluster.exact import Int64
from divsel_ray.cluster.kernels import BLOCK_ELEMENTS, DEVICE_ELEMENTS, Rows, slices, squared_norms, tensor_of, wide
from divsel_ray.errors import InputError, words_of


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` (exclusive) of one Parquet file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Partition:
    """Consecutive rows, the first of which has global number `first`; `half` if all files store float16."""

    first: int
    segments: tuple[Segment, ...]
    dimension: int
    half: bool

    @property
    def rows(self) -> int:
        """Rows of all segments."""
        return sum(segment.stop - segment.start for segment in self.segments)


@dataclass(frozen=True)
class Files:
    """Checked embedding files: paths, rows of each, the dimension of the vectors, and whether all are float16."""

    paths: tuple[str, ...]
    counts: tuple[int, ...]
    dimension: int
    half: bool

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(self.counts)


def list_files(source: str | Path | Sequence[str | Path]) -> list[str]:
    """The Parquet files of a folder in name order, or the paths of a list as given.

    Raises:
        InputError: a folder or file does not exist, or the folder contains no Parquet file.
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
    """Check that all files have vectors of one dimension; reads only the footers.

    Raises:
        InputError: a file is not Parquet, lacks a column, or its vectors have another type or dimension.
    """
    counts, dimensions, halves = [], [], []
    for path in paths:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: not a Parquet file: {words_of(error)}") from None
        with file:
            counts.append(file.metadata.num_rows)
            dimensions.append(_dimension(path, file.schema_arrow))
            halves.append(file.schema_arrow.field("embedding").type.value_type == pa.float16())
    for path, dimension in zip(paths, dimensions, strict=True):
        if dimension != dimensions[0]:
            raise InputError(
                f"{path}: vectors have {dimension} dimensions, those of {paths[0]} have {dimensions[0]}; embed all rows again"
            )
    return Files(tuple(paths), tuple(counts), dimensions[0], all(halves))


def _dimension(path: str, schema: Any) -> int:
    missing = {"row_id", "embedding"} - set(schema.names)
    if missing:
        raise InputError(f"{path}: no column {min(missing)}; expected row_id and embedding")
    kind = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type) or kind.list_size < 1:
        raise InputError(f"{path}: embedding is {kind}; expected a fixed-size list of halffloat or float")
    return int(kind.list_size)


def bounds(rows: int, parts: int) -> list[tuple[int, int]]:
    """Cut `rows` into at most `parts` contiguous, non-empty ranges `(start, stop)` of nearly equal length."""
    parts = min(parts, rows)
    return [(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]


def partition(files: Files, parts: int) -> list[Partition]:
    """Cut the rows of all files into at most `parts` contiguous partitions."""
    return [
        Partition(start, tuple(_segments(files, start, stop)), files.dimension, files.half)
        for start, stop in bounds(files.rows, parts)
    ]


def _segments(files: Files, start: int, stop: int) -> Iterator[Segment]:
    offset = 0
    for path, count in zip(files.paths, files.counts, strict=True):
        low, high = max(start - offset, 0), min(stop - offset, count)
        if low < high:
            yield Segment(path, low, high)
        offset += count


def read(part: Partition) -> Rows:
    """Read the vectors (n, d) of a partition, in float16 if every file stores halffloat, else float32.

    A missing vector is read as NaN, so that its row is reported.
    """
    matrix = np.empty((part.rows, part.dimension), np.float16 if part.half else np.float32)
    for start, rows in read_blocks(part):
        matrix[start : start + len(rows)] = rows
    pa.default_memory_pool().release_unused()
    return matrix


def read_blocks(part: Partition) -> Iterator[tuple[int, Rows]]:
    """Read the same rows block by block, each with its start in the partition, keeping little more than one block in memory."""
    start = 0
    for segment in part.segments:
        for column in _read_batches(segment, "embedding", max(1, BLOCK_ELEMENTS // part.dimension)):
            rows = to_matrix(column)
            yield start, np.asarray(rows, np.float16 if part.half else np.float32)
            start += len(rows)


def _read_batches(segment: Segment, column: str, size: int) -> Iterator[Any]:
    """Read only the row groups that overlap the segment."""
    with pq.ParquetFile(segment.path, memory_map=True) as file:
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        starts = np.concatenate([[0], ends[:-1]])
        groups = np.flatnonzero((ends > segment.start) & (starts < segment.stop))
        at = int(starts[groups[0]])
        for batch in file.iter_batches(size, row_groups=[int(group) for group in groups], columns=[column], use_threads=False):
            low, high = max(segment.start - at, 0), min(segment.stop - at, len(batch))
            at += len(batch)
            if low < high:
                yield batch.column(0).slice(low, high - low)


class ShardRows(Protocol):
    """The rows of a shard, in memory or in files."""

    device: torch.device
    dtype: torch.dtype
    dimension: int

    def __len__(self) -> int:
        """Number of rows."""

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of consecutive rows, each with the number of its first row."""

    def take(self, indices: Int64) -> torch.Tensor:
        """Rows with these numbers, in this order."""


class Held:
    """Rows kept in memory, on a CPU or a GPU."""

    def __init__(self, rows: Rows, device: str | None = None) -> None:
        self._rows = tensor_of(rows).to(device)
        self.device, self.dtype, self.dimension = self._rows.device, self._rows.dtype, self._rows.shape[1]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Views of the rows."""
        for part in slices(len(self._rows), self.dimension, BLOCK_ELEMENTS if self.device.type == "cpu" else DEVICE_ELEMENTS):
            yield part.start, self._rows[part]

    def take(self, indices: Int64) -> torch.Tensor:
        """Rows with these numbers, in this order."""
        return self._rows[torch.from_numpy(indices).to(self.device)]


class Streamed:
    """Rows read from their files on every pass."""

    def __init__(self, part: Partition, device: str = "cpu", *, normalised: bool = False) -> None:
        self._part, self._normalised = part, normalised
        self.device, self.dimension = torch.device(device), part.dimension
        self.dtype = torch.float16 if part.half else torch.float32

    def __len__(self) -> int:
        """Number of rows."""
        return self._part.rows

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Read the files from the first row to the last."""
        for start, rows in read_blocks(self._part):
            yield start, tensor_of(normalise(rows) if self._normalised else rows).to(self.device)

    def take(self, indices: Int64) -> torch.Tensor:
        """Rows with these numbers, in this order; reads the files up to the last of them."""
        found = torch.empty(len(indices), self.dimension, dtype=self.dtype, device=self.device)
        order = np.argsort(indices, kind="stable")
        ascending = indices[order]
        for start, rows in self.blocks():
            if not len(ascending) or start > ascending[-1]:
                break
            low, high = np.searchsorted(ascending, [start, start + len(rows)])
            if low < high:
                found[torch.from_numpy(order[low:high])] = rows[torch.from_numpy(ascending[low:high] - start)]
        return found


def normalise(rows: Rows) -> Rows:
    """Scale rows (n, d) to unit length, in their own type; a row of zeros is unchanged."""
    result: Any = torch.empty_like(rows) if isinstance(rows, torch.Tensor) else np.empty_like(rows)
    for part in slices(len(rows), rows.shape[1], BLOCK_ELEMENTS // 4):
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(squared_norms(rows[part]))
            scaled = wide(rows[part]) / np.where(norms > 0, norms, 1)[:, None]
            result[part] = torch.from_numpy(scaled) if isinstance(rows, torch.Tensor) else scaled
    return result


def to_matrix(column: Any) -> Rows:
    """Convert a fixed-size list array to a matrix (n, d), float16 or float32; missing vectors and values become NaN."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    halves = column.type.value_type == pa.float16()
    if column.null_count == 0 and not pa.types.is_float64(column.type.value_type) and column.flatten().null_count == 0:
        return column.flatten().to_numpy().reshape(-1, column.type.list_size)
    matrix = np.full((len(column), column.type.list_size), np.nan, np.float16 if halves else np.float32)
    valid = ~column.is_null().to_numpy(zero_copy_only=False)
    values = column.drop_null().flatten()
    with np.errstate(over="ignore"):
        matrix[valid] = values.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return matrix


def name_row(files: Files, index: int) -> str:
    """The name of a row in messages: its file, number in the file and row id.

    Args:
        files: the checked files.
        index: global row number.
    """
    segment = next(_segments(files, index, index + 1))
    row_id = next(_read_batches(segment, "row_id", 1024))[0].as_py()
    return f"{segment.path}: row {segment.start} (row_id {row_id})"
