"""Writing selections as files that trainers read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.errors import InputError
from divsel_ray.store import atomic_path

COLUMNS = ("messages", "row_id", "cluster", "quality", "round", "source", "weight", "budget", "why")
"""Columns of a selection, in this order; those missing from a table are left out."""
SELECTION = "selection"
"""Name of a run's selection files, without suffix."""
_BATCH_ROWS = 1024


def write_selection(table: pa.Table, folder: Path, name: str = SELECTION) -> None:
    """Write `selection.jsonl` and `selection.parquet`, each atomically; the same rows yield the same bytes."""
    for suffix in (".jsonl", ".parquet"):
        write_rows(table, folder / f"{name}{suffix}")


def write_rows(table: pa.Table, path: Path) -> None:
    """Write a selection atomically, as JSON Lines or Parquet according to the suffix.

    JSON Lines: one object per line, `messages` first, unescaped UTF-8, floats in Python's shortest exact form, null for
    missing values and non-finite numbers.

    Raises:
        InputError: the suffix is neither .jsonl nor .parquet, or the path is a folder.
    """
    suffix = check_target(path)
    chosen = table.select([name for name in COLUMNS if name in table.column_names]).replace_schema_metadata(None)
    with atomic_path(path) as temporary:
        if suffix == ".parquet":
            _write_parquet(chosen, temporary)
        else:
            _write_lines(chosen, temporary)


def check_target(path: Path) -> str:
    """The file's suffix; raises as `write_rows` does if a selection cannot be written to the path."""
    suffix = Path(path).suffix.lower()
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file to write")
    if suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: unknown output format; use a name that ends in .jsonl or .parquet")
    return suffix


def _write_parquet(table: pa.Table, path: Path) -> None:
    """Write small row groups, since readers accept at most 2 GiB of text from one."""
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for start in range(0, max(len(table), 1), _BATCH_ROWS):
            # One chunk each: otherwise the bytes would depend on how the table was assembled.
            writer.write_table(table.slice(start, _BATCH_ROWS).combine_chunks())


def _write_lines(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for batch in table.to_batches(_BATCH_ROWS):
            for row in batch.to_pylist():
                stream.write(json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
