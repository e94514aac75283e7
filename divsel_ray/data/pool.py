"""The three steps that make a pool, on files and without Ray.

1. `parse_file`: one input file becomes conversations, split by row id into partitions, and a quarantine of bad rows.
2. `write_keys` and `find_threshold`: which rows belong to a sample of the whole pool (only if one is requested).
3. `write_part`: one partition is sorted by row id, deduplicated exactly, reduced to the sample and written.

Rows are always ordered by id, so that the pool does not depend on how its input was split into files.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from divsel_ray.config import ConversationPart
from divsel_ray.data import spill
from divsel_ray.data.conversation import BadRow, canonicalise, check_length, completion_text, prompt_text, row_id
from divsel_ray.data.formats import COLUMNS, CONVERTERS, Converter, detect, with_columns
from divsel_ray.data.hashing import id_array, uniform_hash
from divsel_ray.data.readers import Record, read_records
from divsel_ray.data.remote import Input
from divsel_ray.data.tokens import count_tokens
from divsel_ray.store import atomic_path, read_json, write_array, write_json, write_table

QUARANTINE = "quarantine.jsonl"
_FACTS = "facts.json"
_DETECT_ROWS = 100
_QUARANTINED_CHARS = 2_000
_COUNTED_REASONS = 50
_BAD_ROWS = 100
_KEY = np.dtype([("key", "<u8"), ("row_id", "S32")])

POOL_SCHEMA = pa.schema(
    [
        spill.SCHEMA.field("row_id"),
        spill.SCHEMA.field("messages"),
        pa.field("prompt", pa.string()),
        pa.field("completion", pa.string()),
        pa.field("source", pa.string()),
        spill.SCHEMA.field("position"),
        pa.field("n_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class FileTask:
    """How to parse one input file.

    Attributes:
        file: the file.
        source: its name in the pool.
        n_partitions: number of partitions of the pool.
        format: a key of `formats.CONVERTERS`, or auto.
        columns: part of a conversation to key of a row; if given, the format is ignored.
        turns: whole conversations, or the first exchange.
        max_chars: maximum length of a conversation.
        score_column: numeric key stored as score.
    """

    file: Input
    source: str
    n_partitions: int
    format: str = "auto"
    columns: Mapping[ConversationPart, str] = field(default_factory=dict)
    turns: Literal["all", "first"] = "all"
    max_chars: int = 1_000_000
    score_column: str | None = None


@dataclass(frozen=True)
class Layout:
    """Locations of the files of a pool under construction.

    Attributes:
        folder: the stage's folder; temporary files go to its `raw`.
        sources: names of the input files, sorted; file i is parsed into `file_folder(i)`.
        n_partitions: number of partitions of the pool.
        seed: seed of the sample.
    """

    folder: Path
    sources: tuple[str, ...]
    n_partitions: int
    seed: int

    @property
    def raw(self) -> Path:
        """The folder of temporary files."""
        return self.folder / "raw"

    def file_folder(self, index: int) -> Path:
        """The folder into which one input file is parsed."""
        return self.raw / f"file-{index:05d}"

    def key_file(self, partition: int) -> Path:
        """The sampling keys of one partition."""
        return self.raw / f"keys-{partition:05d}.npy"

    def part(self, partition: int) -> Path:
        """One file of the pool."""
        return self.folder / f"part-{partition:05d}.parquet"

    def part_facts(self, partition: int) -> Path:
        """The counts of one file of the pool."""
        return self.raw / f"part-{partition:05d}.json"

    def batches(self, partition: int) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The raw rows of one partition with their source, in source order, then file order."""
        for index, source in enumerate(self.sources):
            for batch in spill.read_partition(self.file_folder(index), partition):
                yield source, batch


@dataclass(frozen=True)
class Threshold:
    """The last row, in the order (key, row_id), that belongs to the sample."""

    key: int
    row_id: str


@dataclass(frozen=True)
class PartPlan:
    """How the rows of every partition are processed.

    Attributes:
        threshold: end of the sample, None to keep every row.
        tokenizer: model reference, for `n_tokens`.
        with_score: whether the pool has the column `score`.
    """

    threshold: Threshold | None
    tokenizer: str
    with_score: bool


def parse_file(task: FileTask, folder: Path) -> dict[str, Any]:
    """Parse one file into `folder`: its rows by partition, its quarantine and its facts. Skipped if already done.

    Returns:
        `format`, `rows` (records of the file), `good`, `bad`, `conversations` (if good rows yielded several), `duplicates`
        (found so far), `reasons` (reason to count), `first_bad` (up to three `position: reason`), `unreadable` (why the end of
        the file is unreadable, or None) and `lost` (estimated number of rows lost with it).
    """
    if not folder.exists():
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write_json(temporary / _FACTS, _parse_into(task, temporary))
    return dict(read_json(folder / _FACTS))


def _parse_into(task: FileTask, folder: Path) -> dict[str, Any]:
    name, records = convert_file(task)
    good, conversations, reasons, first_bad, unreadable, lost = 0, 0, Counter[str](), list[str](), None, 0
    with (
        spill.SpillWriter(folder, task.n_partitions) as writer,
        (folder / QUARANTINE).open("w", encoding="utf-8", errors="backslashreplace") as quarantine,
    ):
        for record, rows in records:
            if isinstance(rows, BadRow):
                reasons[_counted(reasons, rows.kind)] += 1
                first_bad += [f"{record.position}: {rows.reason}"] * (len(first_bad) < 3)
                unreadable, lost = rows.reason if record.ends else None, record.lost
                quarantine.write(quarantine_line(task.source, record, rows.reason))
                continue
            good, conversations = good + 1, conversations + len(rows)
            for row in rows:
                writer.add(row)
        duplicates = writer.duplicates
    bad_rows = reasons.total()
    counts = {"format": name, "rows": good + bad_rows, "good": good, "bad": bad_rows, "duplicates": duplicates}
    several = {"conversations": conversations} if conversations != good else {}
    return {**counts, **several, "reasons": dict(reasons), "first_bad": first_bad, "unreadable": unreadable, "lost": lost}


def convert_file(task: FileTask) -> tuple[str, Iterator[tuple[Record, list[dict[str, Any]] | BadRow]]]:
    """The format of a file; and each record with its rows (row_id, messages, position, score) or what is wrong with it."""
    records = read_records(task.file)
    head = list(islice(records, _DETECT_ROWS))
    name, convert = _converter(task, head)
    numbered = enumerate(chain(head, records))
    return name, ((record, _rows_or_fault(record, position, convert, task)) for position, record in numbered)


def _rows_or_fault(record: Record, position: int, convert: Converter, task: FileTask) -> list[dict[str, Any]] | BadRow:
    try:
        return _rows(record, position, convert, task)
    except BadRow as bad:
        return bad


def _converter(task: FileTask, head: Sequence[Record]) -> tuple[str, Converter]:
    """The format of a file, detected from its first rows unless given, and its converter."""
    if task.columns:
        return COLUMNS, with_columns(task.columns)
    name = detect(record.value for record in head if record.reason is None) if task.format == "auto" else task.format
    return name, CONVERTERS[name]


def _rows(record: Record, position: int, convert: Converter, task: FileTask) -> list[dict[str, Any]]:
    """The pool rows made from one record."""
    if record.reason is not None:
        raise BadRow(record.reason)
    conversations = [canonicalise(messages, task.turns) for messages in convert(record.value)]
    score = _number(record.value, task.score_column) if task.score_column else None
    for messages in conversations:
        check_length(messages, task.max_chars)
    return [{"row_id": row_id(m), "messages": m, "position": position, "score": score} for m in conversations]


def _number(row: Any, column: str) -> float | None:
    value = row.get(column)
    # Every value of a CSV file is a string.
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _counted(reasons: Counter[str], reason: str) -> str:
    """The name under which a reason is counted; limited in number to keep the facts small for any input."""
    return reason if reason in reasons or len(reasons) < _COUNTED_REASONS else "other reasons"


def bad_rows_allowed(rows: int, limit: int | None) -> int:
    """Number of bad rows tolerated among `rows`: the limit, or the larger of 100 and 1 % if it is None."""
    return max(_BAD_ROWS, rows // 100) if limit is None else limit


def quarantine_line(source: str, record: Record, reason: str) -> str:
    """A bad row as a line of the quarantine: file, position, reason and the start of the row, in JSON.

    Strings may contain lone surrogates: write the line with errors="backslashreplace".
    """
    try:
        text = record.value if isinstance(record.value, str) else json.dumps(record.value, ensure_ascii=False, default=_shown)
    except RecursionError:
        text = "(nested too deeply to show)"
    entry = {"file": source, "position": record.position, "reason": reason, "row": text[:_QUARANTINED_CHARS]}
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _shown(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else str(value)


def join_quarantines(layout: Layout) -> None:
    """Join the quarantines of the parsed files in the order of the sources."""
    with atomic_path(layout.folder / QUARANTINE) as temporary, temporary.open("wb") as joined:
        for index in range(len(layout.sources)):
            with (layout.file_folder(index) / QUARANTINE).open("rb") as stream:
                shutil.copyfileobj(stream, joined)


def write_keys(layout: Layout, partition: int, sample: int) -> None:
    """Write (key, row_id) of the rows of a partition that may be in the sample, plus one more. Skipped if already done.

    The extra row distinguishes a partition larger than the sample from one that equals it.
    """
    path = layout.key_file(partition)
    if path.exists():
        return
    ids = np.unique(
        np.concatenate([np.array([], "S32"), *(id_array(batch.column("row_id")) for _, batch in layout.batches(partition))])
    )
    keys = np.empty(len(ids), dtype=_KEY)
    keys["key"], keys["row_id"] = _sampling_keys(layout, ids), ids
    write_array(path, np.sort(keys, order=["key", "row_id"])[: sample + 1])


def find_threshold(layout: Layout, sample: int) -> Threshold | None:
    """The last of the `sample` smallest (key, row_id) of the whole pool; None if the pool has no more rows than that."""
    files = [np.load(layout.key_file(partition), mmap_mode="r", allow_pickle=False) for partition in range(layout.n_partitions)]
    keys = np.concatenate([file["key"] for file in files])
    if len(keys) <= sample:
        return None
    key = np.partition(keys, sample - 1)[sample - 1]
    tied = np.sort(np.concatenate([file["row_id"][file["key"] == key] for file in files]))
    return Threshold(int(key), tied[sample - 1 - int((keys < key).sum())].decode())


def write_part(layout: Layout, partition: int, plan: PartPlan) -> dict[str, int]:
    """Write one partition of the pool, sorted by row id. Skipped if already done.

    Returns:
        `rows`, `tokens`, `duplicates` removed here, `unique` rows before sampling, `score_missing`.
    """
    path, facts_path = layout.part(partition), layout.part_facts(partition)
    if not (path.exists() and facts_path.exists()):
        table, duplicates = _load_partition(layout, partition)
        part = _finish(_sampled(table, layout, plan.threshold), plan)
        tokens, missing = pc.sum(part["n_tokens"]).as_py() or 0, part["score"].null_count if plan.with_score else 0
        counts = {"rows": len(part), "tokens": tokens, "duplicates": duplicates, "unique": len(table), "score_missing": missing}
        # The facts are written first, so that they exist for every part written by this stage.
        write_json(facts_path, counts)
        write_table(path, part, compression="zstd")
    return dict(read_json(facts_path))


def _load_partition(layout: Layout, partition: int) -> tuple[pa.Table, int]:
    """One partition's rows sorted by id, each id once (first source and position, largest score), and the number removed."""
    schema = spill.SCHEMA.append(pa.field("source", pa.string()))
    batches = [
        batch.append_column("source", pa.array([source] * batch.num_rows, pa.string()))
        for source, batch in layout.batches(partition)
    ]
    table = pa.Table.from_batches(batches, schema).combine_chunks()
    # np.unique returns the first position of every id, in id order.
    _, first, which = np.unique(id_array(table["row_id"]), return_index=True, return_inverse=True)
    best = np.full(len(first), -np.inf)
    np.maximum.at(best, which, table["score"].fill_null(-np.inf).to_numpy())
    score = pa.array(best, mask=np.isneginf(best))
    rows = table.take(pa.array(first))
    return rows.set_column(rows.schema.get_field_index("score"), "score", score), len(table) - len(first)


def _sampling_keys(layout: Layout, ids: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    return uniform_hash(layout.seed, "sample", ids)


def _sampled(table: pa.Table, layout: Layout, threshold: Threshold | None) -> pa.Table:
    if threshold is None:
        return table
    ids, last = id_array(table["row_id"]), np.uint64(threshold.key)
    keys = _sampling_keys(layout, ids)
    return table.filter(pa.array((keys < last) | ((keys == last) & (ids <= threshold.row_id.encode()))))


def _finish(table: pa.Table, plan: PartPlan) -> pa.Table:
    conversations = table["messages"].to_pylist()
    prompts, completions = [prompt_text(c) for c in conversations], [completion_text(c) for c in conversations]
    counts = count_tokens(plan.tokenizer, [f"{p}\n{c}" for p, c in zip(prompts, completions, strict=True)])
    made = {"prompt": prompts, "completion": completions, "n_tokens": counts}
    columns = [pa.array(made[f.name], f.type) if f.name in made else table[f.name] for f in POOL_SCHEMA]
    part = pa.Table.from_arrays(columns, schema=POOL_SCHEMA)
    return (part.append_column("score", table["score"]) if plan.with_score else part).combine_chunks()


def read_rows(path: str, wanted: Sequence[str]) -> pa.Table:
    """The rows of one pool file with these ids, in file order."""
    return pq.read_table(path, filters=pc.field("row_id").isin(pa.array(wanted, pa.string())))
