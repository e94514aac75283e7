"""The chosen rows as files that trainers read."""

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
"""What a selection holds, in this order; columns that a table lacks are left out."""
SELECTION = "selection"
"""What a run's files of the rows chosen are called."""
_BATCH_ROWS = 1024


def write_selection(table: pa.Table, folder: Path, name: str = SELECTION) -> None:
    """Write `selection.jsonl` and `selection.parquet`, each atomically; the same rows give the same bytes."""
    for suffix in (".jsonl", ".parquet"):
        write_rows(table, folder / f"{name}{suffix}")


def write_rows(table: pa.Table, path: Path) -> None:
    """Write a selection as JSON Lines or as Parquet, whichever the suffix says, atomically.

    JSON Lines: one object a line, `messages` first, UTF-8 not escaped, floats in Python's shortest exact form, null for
    what is missing or not a number.

    Raises:
        InputError: the suffix is neither .jsonl nor .parquet, or there is a folder of that name.
    """
    suffix = check_target(path)
    chosen = table.select([name for name in COLUMNS if name in table.column_names]).replace_schema_metadata(None)
    with atomic_path(path) as temporary:
        if suffix == ".parquet":
            _write_parquet(chosen, temporary)
        else:
            _write_lines(chosen, temporary)


def check_target(path: Path) -> str:
    """The file's suffix, if a selection can be written to it (see `write_rows`)."""
    suffix = Path(path).suffix.lower()
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file to write")
    if suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: cannot tell how to write it; give a name that ends in .jsonl or .parquet")
    return suffix


def _write_parquet(table: pa.Table, path: Path) -> None:
    """Row groups of few rows, for no reader takes texts of more than 2 GiB from one."""
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for start in range(0, max(len(table), 1), _BATCH_ROWS):
            # Each of one chunk: else the bytes would tell how the table was put together.
            writer.write_table(table.slice(start, _BATCH_ROWS).combine_chunks())


def _write_lines(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for batch in table.to_batches(_BATCH_ROWS):
            for row in batch.to_pylist():
                stream.write(json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
