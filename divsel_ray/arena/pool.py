"""The arena's own pool: without the evaluation rows, with faults, and with the labels and faults of rows in separate files.

Runs in Ray tasks, one per file; only the evaluation rows reach the driver. The pool is written as files of messages (with
the score, if the job has one), which the job's stages then read like any other data: labels and faults are in files that no
stage of a job receives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from divsel_ray.arena.spoil import faults_of, spoil
from divsel_ray.config.arena import SpoilConfig
from divsel_ray.data.conversation import row_id
from divsel_ray.data.hashing import id_array, uniform_hash
from divsel_ray.data.pool import read_rows
from divsel_ray.data.readers import read_records
from divsel_ray.data.remote import Input
from divsel_ray.store import atomic_path, write_table

ROWS, MARKS, LABELS, EVALUATION = "rows", "marks", "labels", "evaluation.parquet"
"""Folders and files of the stage: the pool, labels and faults of its rows, labels of the input, the evaluation rows."""


@dataclass(frozen=True)
class SplitPlan:
    """How the pool's rows are split and changed.

    Attributes:
        seed: seed of the hashes.
        evaluation: file of the evaluation rows, which are removed from the pool.
        labels: label file of each source; empty if a row's label is its source.
        spoil: faults to introduce; None for none.
        with_score: whether rows have a score.
    """

    seed: int
    evaluation: str
    labels: dict[str, str]
    spoil: SpoilConfig | None
    with_score: bool


def choose_rows(pool_files: Sequence[str], count: int, seed: int) -> list[str]:
    """Ids of the `count` rows of a pool with the smallest hashes of seed and row id."""
    ids = np.concatenate([id_array(pq.read_table(file, columns=["row_id"])["row_id"]) for file in pool_files])
    order = np.lexsort([ids, uniform_hash(seed, "arena evaluation", ids)])
    return sorted(ids[order[:count]].astype("U32").tolist())


def write_evaluation(pool_files: Sequence[str], count: int, seed: int, labels: dict[str, str], target: str) -> int:
    """Write evaluation rows of a pool (row_id, messages, label), sorted by row id, and return their number."""
    ids = choose_rows(pool_files, count, seed)
    table = pa.concat_tables([read_rows(file, ids) for file in pool_files]).sort_by("row_id")
    named = pa.array(label_rows(table, labels), pa.string())
    write_table(target, pa.table({"row_id": table["row_id"], "messages": table["messages"], "label": named}))
    return len(table)


def write_labels(file: Input, column: str, target: str) -> int:
    """Write the labels of an input file's records, by position, and return the number of records with a label."""
    labels = [_label(record.value, column) if record.reason is None else None for record in read_records(file)]
    write_table(target, pa.table({"label": pa.array(labels, pa.string())}))
    return sum(label is not None for label in labels)


def _label(row: Any, column: str) -> str | None:
    value = row.get(column) if isinstance(row, dict) else None
    return None if value is None else str(value)


def label_rows(table: pa.Table, labels: dict[str, str]) -> list[str]:
    """Labels (n,) of rows by source and position, or their sources if there are no label files."""
    sources, positions = table["source"].to_pylist(), table["position"].to_pylist()
    if not labels:
        return sources
    known = {source: pq.read_table(labels[source])["label"].to_pylist() for source in set(sources)}
    return [known[source][position] or "" for source, position in zip(sources, positions, strict=True)]


def split_part(pool_file: str, plan: SplitPlan, folder: str) -> dict[str, Any]:
    """Write a pool file's rows without the evaluation rows and with faults, and the labels and faults, unless they exist.

    Returns:
        {"removed": evaluation rows in the file, "rows": remaining rows, "faults": rows by fault}.
    """
    name, place = Path(pool_file).stem, Path(folder)
    marks = place / MARKS / f"{name}.parquet"
    table = pq.read_table(pool_file)
    ids = pq.read_table(plan.evaluation, columns=["row_id"])["row_id"].combine_chunks()
    kept = table.filter(pc.invert(pc.is_in(table["row_id"], ids)))
    if not marks.exists():
        _write_part(kept, plan, place / ROWS / f"{name}.jsonl", marks)
    found = pc.value_counts(pq.read_table(marks, columns=["fault"])["fault"]).to_pylist()
    faults = {one["values"]: one["counts"] for one in found if one["values"]}
    return {"removed": len(table) - len(kept), "rows": len(kept), "faults": faults}


def _write_part(table: pa.Table, plan: SplitPlan, rows: Path, marks: Path) -> None:
    ids, conversations = table["row_id"].to_pylist(), table["messages"].to_pylist()
    texts = [messages[-1]["content"] for messages in conversations]
    faults = faults_of(ids, plan.spoil, plan.seed) if plan.spoil and ids else [None] * len(ids)
    changed = spoil(texts, ids, faults, plan.seed) if plan.spoil and ids else [(text, "") for text in texts]
    scores = table["score"].to_pylist() if plan.with_score else [None] * len(ids)
    written = []
    with atomic_path(rows) as path, path.open("w", encoding="utf-8") as stream:
        for messages, (text, _), score in zip(conversations, changed, scores, strict=True):
            made = [*messages[:-1], {**messages[-1], "content": text}]
            written.append(row_id(made))
            entry = {"messages": made, **({"score": score} if plan.with_score else {})}
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
    known = {"row_id": written, "label": label_rows(table, plan.labels), "fault": [fault for _, fault in changed]}
    write_table(marks, pa.table(known, pa.schema([(name, pa.string()) for name in known])))


def count_labels(marks: Sequence[str]) -> int:
    """Number of distinct labels in the pool."""
    return len(pc.unique(pa.concat_tables([pq.read_table(file, columns=["label"]) for file in marks])["label"]))


def describe_rows(marks: Sequence[str], selected: str) -> dict[str, Any]:
    """Count faults and labels of selected rows.

    Args:
        marks: files written by `split_part`.
        selected: Parquet file with their `row_id`.

    Returns:
        {"spoiled": rows with a fault, "labels": distinct labels}. A row that exists both unchanged and as the result of a fault
        in another row does not count as spoiled.
    """
    ids = pq.read_table(selected, columns=["row_id"])["row_id"].combine_chunks()
    parts = [pq.read_table(file, filters=pc.field("row_id").isin(ids)) for file in marks]
    known = pa.concat_tables(parts)
    rows = known["row_id"].to_pylist()
    whole = {row for row, fault in zip(rows, known["fault"].to_pylist(), strict=True) if not fault}
    return {"spoiled": len(set(rows) - whole), "labels": len(set(known["label"].to_pylist()))}
