"""The rows that losses are measured on, a run's own held-out rows or those of a file; and their clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.cluster.kernels import assign
from divsel_ray.cluster.stage import CENTROIDS
from divsel_ray.config import PoolConfig
from divsel_ray.data.conversation import BadRow, completion_text, prompt_text
from divsel_ray.data.inputs import find_inputs
from divsel_ray.data.pool import FileTask, convert_file
from divsel_ray.data.remote import Input
from divsel_ray.errors import InputError
from divsel_ray.evaluate.models import Run
from divsel_ray.progress import Progress
from divsel_ray.report.records import round_numbers
from divsel_ray.stage_names import kind_of, round_name
from divsel_ray.store import digest, write_table

_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("prompt", pa.string()),
        ("completion", pa.string()),
    ]
)


def read_file(reference: str, setting: str, pool: PoolConfig, progress: Progress) -> list[dict[str, Any]]:
    """Read the distinct conversations of a file in the same way as a pool's, sorted by row id; a note reports bad rows.

    Args:
        reference: file, folder, glob, hf:OWNER/NAME or package:NAME.
        setting: name of the setting or option, for messages.
        pool: columns, format, turns and max_chars to read by.
        progress: receives a note on bad rows.

    Returns:
        A list of {"row_id", "messages"}.

    Raises:
        InputError: the file does not exist, or contains no conversation.
    """
    found: dict[str, list[Any]] = {}
    bad: list[str] = []
    for file in find_inputs([reference], setting):
        _read_into(found, bad, file, pool)
    if not found:
        named = "pool.columns" if pool.columns else "pool.format" if pool.format != "auto" else ""
        how = f" when read by the run's {named}" if named else ""
        raise InputError(f"{setting}: {reference}: contains no conversation{how}" + (f"; the first row: {bad[0]}" if bad else ""))
    if bad:
        progress.note(f"{setting}: {len(bad):,} bad rows left out, the first: {bad[0]}")
    return [{"row_id": one, "messages": found[one]} for one in sorted(found)]


def _read_into(found: dict[str, list[Any]], bad: list[str], file: Input, pool: PoolConfig) -> None:
    task = FileTask(file, file.name, 1, pool.format, pool.columns, pool.turns, pool.max_chars)
    for record, rows in convert_file(task)[1]:
        if isinstance(rows, BadRow):
            bad.append(f"{file.name} {record.position}: {rows.reason}")
        else:
            found |= {row["row_id"]: row["messages"] for row in rows}


def held_out_rows(runs: Sequence[Run]) -> list[dict[str, Any]] | None:
    """The held-out rows shared by all runs, sorted by row id; None if there are none, or if they differ between runs."""
    kept = []
    for run in runs:
        first = run.stages[round_name(round_numbers(run.stages)[0], "draw")]
        table = pq.read_table(first.file("held_out_rows.parquet"), columns=["row_id", "messages"])
        kept.append(table.sort_by("row_id").to_pylist())
    same = bool(kept) and all(rows == kept[0] for rows in kept)
    return kept[0] if same and kept[0] else None


def trained_on(runs: Sequence[Run]) -> set[str]:
    """Ids of all rows that a model of these runs was trained on."""
    draws = [stage for run in runs for name, stage in run.stages.items() if kind_of(name) == "draw"]
    return {one for draw in draws for one in pq.read_table(draw.file("selected.parquet"))["row_id"].to_pylist()}


def write_rows(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write Parquet (row_id, messages, prompt, completion) under a name derived from the row ids."""
    full = [{**row, "prompt": prompt_text(row["messages"]), "completion": completion_text(row["messages"])} for row in rows]
    target = folder / f"rows-{digest([row['row_id'] for row in rows])}.parquet"
    if not target.exists():
        write_table(target, pa.Table.from_pylist(full, _SCHEMA))
    return target


def known_clusters(run: Run, row_ids: Sequence[str]) -> dict[str, int]:
    """The clusters of the rows that are in the run's pool."""
    found: dict[str, int] = {}
    for file in sorted(run.stages["cluster"].folder.glob("*.parquet")):
        table = pq.read_table(file, columns=["row_id", "cluster"], filters=[("row_id", "in", list(row_ids))])
        found |= dict(zip(table["row_id"].to_pylist(), table["cluster"].to_pylist(), strict=True))
    return found


def nearest_clusters(run: Run, vectors: np.ndarray) -> np.ndarray:
    """The nearest of the run's centroids (n,) for each vector (n, d)."""
    return assign(vectors, np.load(run.stages["cluster"].file(CENTROIDS))).labels
