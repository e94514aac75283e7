"""Vectors or scores supplied by users for the rows of their pool, aligned by row id or by position in the input.

| file | aligned by |
|---|---|
| `.parquet`, or a folder of them, with `row_id` | row id, as in every pool and selection |
| `.npy`, `.npy.gz` | position: row i belongs to record i of the only input file, including bad records |
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from divsel_ray.data.hashing import id_array
from divsel_ray.data.inputs import named_files
from divsel_ray.errors import InputError, first_line
from divsel_ray.store import atomic_path

_NUMPY = (".npy", ".npy.gz")
_COPIED_BYTES = 1 << 22


def given_files(path: str, setting: str) -> list[Path]:
    """The files behind a user's path.

    Raises:
        InputError: no file exists, or it is of another kind.
    """
    files = named_files(path, setting)
    if files[0].suffix != ".parquet" and not files[0].name.endswith(_NUMPY):
        raise InputError(f"{setting}: {path}: expected .parquet with row_id, .npy or .npy.gz")
    return files


def check_given(path: str, setting: str, column: str, records: Mapping[str, int]) -> None:
    """Raise, before any work, if the files cannot be aligned with the pool.

    Args:
        path: file or folder.
        setting: its name in the configuration.
        column: the column required in Parquet files.
        records: number of records of each input file.

    Raises:
        InputError: a column is missing, or an array does not have one row per record of a single input file.
    """
    first = given_files(path, setting)[0]
    if first.suffix == ".parquet":
        try:
            names = pq.read_schema(first).names
        except pa.ArrowException as error:
            raise InputError(f"{setting}: {first}: not readable as Parquet ({first_line(error)})") from None
        missing = {"row_id", column} - set(names)
        if missing:
            raise InputError(f"{setting}: {first}: no column {' and '.join(sorted(missing))}; expected row_id and {column}")
        return
    if len(records) > 1:
        raise InputError(
            f"{setting}: {path}: an array has no row ids and works with one input file only; there are {len(records)}; "
            f"use Parquet with row_id and {column}"
        )
    shape, expected = array_shape(first, setting), next(iter(records.values()), 0)
    rows = shape[0] if shape else 1
    if rows != expected:
        raise InputError(f"{setting}: {path}: {rows:,} rows for an input of {expected:,} records; expected one row per record")


def width_of(path: str, setting: str, column: str) -> int:
    """Length of each value: the dimension of vectors; 0 if values are single numbers or the file has none."""
    first = given_files(path, setting)[0]
    if first.suffix != ".parquet":
        shape = array_shape(first, setting)
        return shape[1] if len(shape) == 2 else 0
    batches = pq.ParquetFile(first).iter_batches(1024, columns=[column])
    value = next((values[0].as_py() for batch in batches if len(values := batch.column(column).drop_null())), None)
    return len(value) if isinstance(value, list) else 0


def array_shape(path: Path, setting: str) -> tuple[int, ...]:
    """The shape of a NumPy array; only the header is read if it is compressed.

    Raises:
        InputError: the file contains no array.
    """
    if path.suffix != ".gz":
        return load_array(path, setting).shape
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with _told(path, setting), gzip.open(path) as stream:
        shape, _, kind = readers[np.lib.format.read_magic(stream)](stream)
        if kind.hasobject:
            raise ValueError("it contains objects")
        return shape


def load_array(path: Path, setting: str) -> np.ndarray:
    """A NumPy array, memory-mapped if it is not compressed.

    Raises:
        InputError: the file contains no array.
    """
    with _told(path, setting):
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return cast(np.ndarray, np.load(stream, allow_pickle=False))
        return cast(np.ndarray, np.load(path, mmap_mode="r", allow_pickle=False))


def mappable(given: str, folder: Path) -> Path | None:
    """Where `unpack` should write an array shared by many tasks; None if the file needs no unpacking."""
    return folder / Path(given).name.removesuffix(".gz") if given.endswith(".npy.gz") else None


def unpack(given: str, target: Path, setting: str) -> None:
    """Decompress an array to a file that tasks can memory-map instead of loading. Skipped if already done.

    Raises:
        InputError: the array is damaged.
    """
    if not target.exists():
        path = Path(given).expanduser()
        with _told(path, setting), gzip.open(path) as stream, atomic_path(target) as unfinished, unfinished.open("wb") as out:
            shutil.copyfileobj(stream, out, _COPIED_BYTES)


@contextlib.contextmanager
def _told(path: Path, setting: str) -> Iterator[None]:
    """Report in one line what is wrong with an array."""
    try:
        yield
    except (ValueError, OSError, EOFError, KeyError, zlib.error) as error:
        raise InputError(f"{setting}: {path}: not a NumPy array ({first_line(error)})") from None


def rows_read(path: str, setting: str, pool_files: Sequence[str]) -> float:
    """How often `take_given` reads each Parquet row for the whole pool, on average; 1 if the files are sorted by row id."""
    groups = [group for file in given_files(path, setting) for group in _ranges(file)]
    parts = [ranges for file in pool_files if (ranges := _ranges(file))]
    bounds = [(min(low for low, *_ in part), max(high for _, high, _ in part)) for part in parts]
    read = sum(rows for low, high, rows in groups for first, last in bounds if low <= last and high >= first)
    return read / max(1, sum(rows for *_, rows in groups))


def _ranges(file: str | Path) -> list[tuple[str, str, int]]:
    """Lowest and highest row id (if in the footer) and number of rows of each non-empty row group."""
    metadata = pq.read_metadata(file)
    column = metadata.schema.names.index("row_id")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    known = [(group.column(column).statistics, group.num_rows) for group in groups if group.num_rows]
    return [(str(found.min), str(found.max), rows) if found and found.has_min_max else ("", "g", rows) for found, rows in known]


def take_given(path: str, setting: str, column: str, part: pa.Table) -> np.ndarray:
    """The values of some rows of the pool, (m,) or (m, d) float, NaN where the files have none.

    Only Parquet row groups that may contain these rows are read.

    Args:
        path: file or folder.
        setting: its name in the configuration.
        column: column of the Parquet files.
        part: row_id and position of m rows.

    Raises:
        InputError: vectors of different lengths.
    """
    files = given_files(path, setting)
    if files[0].suffix != ".parquet":
        return np.asarray(load_array(files[0], setting)[part["position"].to_numpy()])
    ids = id_array(part["row_id"])
    bounds = pc.min_max(part["row_id"]).as_py()
    within = [("row_id", ">=", bounds["min"] or ""), ("row_id", "<=", bounds["max"] or "")]
    found = pa.concat_tables([pq.read_table(file, columns=["row_id", column], filters=within) for file in files])
    theirs = id_array(found["row_id"])
    order = np.argsort(theirs)
    at = np.minimum(np.searchsorted(theirs, ids, sorter=order), max(len(theirs) - 1, 0))
    values = _to_numpy(found[column], f"{setting}: {path}")
    if not len(theirs):
        return np.full((len(ids), *values.shape[1:]), np.nan)
    at = order[at]
    known = theirs[at] == ids
    return np.where(known.reshape(-1, *[1] * (values.ndim - 1)), values[at], np.nan)


def _to_numpy(column: pa.ChunkedArray, name: str) -> np.ndarray:
    kind: Any = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    # A null vector would leave no gap when flattened, shifting the vectors after it to other rows.
    vectors = column.drop_null().combine_chunks()
    lengths = pc.unique(pc.list_value_length(vectors)).to_pylist()
    if len(lengths) > 1:
        raise InputError(f"{name}: vectors of lengths {min(lengths):,} and {max(lengths):,}; expected a single length")
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    width = max(lengths, default=0)
    matrix = np.full((len(column), width), np.nan, np.promote_types(flat.dtype, np.float16))
    matrix[column.is_valid().to_numpy()] = flat.reshape(-1, width) if width else 0
    return matrix
