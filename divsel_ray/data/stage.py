"""The pool on Ray: one task per input file, then one per partition; the driver only sees counts and paths."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from divsel_ray.config import PoolConfig
from divsel_ray.data.formats import with_columns
from divsel_ray.data.inputs import source_names
from divsel_ray.data.pool import (
    QUARANTINE,
    FileTask,
    Layout,
    PartPlan,
    Threshold,
    bad_rows_allowed,
    find_threshold,
    join_quarantines,
    parse_file,
    read_rows,
    write_keys,
    write_part,
)
from divsel_ray.data.remote import Input, size_of
from divsel_ray.errors import InputError
from divsel_ray.models.references import resolve_model
from divsel_ray.progress import Progress, Silent
from divsel_ray.store import remove_folder
from divsel_ray.tasks import run_tasks

CHUNK_ROWS = 1024
"""Number of rows whose texts fit into 2 GiB, the limit of one nested text array in Arrow."""
_LEAST_BYTES, _SHARED_BY = 1 << 18, 16
"""Minimum bytes per partition, and the minimum number of partitions unless they would be smaller than that."""
_FILE_FACTS = ("format", "rows", "good", "bad", "conversations")


def build_pool(
    inputs: Sequence[Input], config: PoolConfig, seed: int, tokenizer: str, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Build a pool from the input files: `part-00000.parquet` ... sorted by row id, and `quarantine.jsonl`.

    Columns: row_id, messages, prompt, completion, source, position (of the record in its source, counting good and bad ones
    from 0), n_tokens, and score if `config.score_column` is set. The rows and their order do not depend on the order of the
    files, on how rows are split over files, or on the number of workers. A call on the folder of an interrupted one resumes
    it. Input bytes are copied on disk while the stage runs.

    Args:
        inputs: files, from `inputs.find_inputs`.
        config: the pool's settings.
        seed: seed of the sample.
        tokenizer: model reference; tokens are counted over prompt, newline and completion (first 100,000 characters).
        folder: the stage's folder; the caller commits it.
        progress: receives the number of finished files and partitions.

    Returns:
        `files` (source to format, rows, good, bad, and conversations if good rows yielded several), `rows_read`,
        `bad_rows`, `bad_reasons`, `lost_rows` (estimated number of unreadable rows after bad ones), `duplicates`,
        `sampled_from` (distinct rows), `rows`, `tokens`, `score_missing`.

    Raises:
        InputError: no good row, more bad rows than allowed (`quarantine.jsonl` is kept for inspection), a score column
            without a number, `config.columns` that form no conversation, a store that does not respond, or no such
            tokenizer.
    """
    resolve_model(tokenizer)
    if config.columns:
        with_columns(config.columns)
    named = sorted(zip(source_names(inputs), inputs, strict=True), key=itemgetter(0))
    n_partitions = partitions_of(sum(size_of(file) for file in inputs), config.partition_bytes)
    layout = Layout(folder, tuple(source for source, _ in named), n_partitions, seed)
    files = _parse_files(layout, [file for _, file in named], config, progress)
    run_tasks(join_quarantines, [(layout,)], Silent(), "files")
    try:
        _check(files, config, folder / QUARANTINE)
        plan = PartPlan(_sample_end(layout, config.sample, progress), tokenizer, config.score_column is not None)
        parts = run_tasks(write_part, [(layout, partition, plan) for partition in range(n_partitions)], progress, "partitions")
    except InputError:
        remove_folder(layout.raw)
        raise
    remove_folder(layout.raw)
    facts = _facts(files, parts)
    if facts["bad_rows"]:
        often, count = next(iter(facts["bad_reasons"].items()))
        progress.note(f"{facts['bad_rows']:,} bad rows, most often ({count:,}): {often}; see {folder / QUARANTINE}")
    if config.score_column and facts["score_missing"] == facts["rows"]:
        raise InputError(
            f"pool.score_column {config.score_column}: no row has a number under that key; use a numeric column of the input"
        )
    return facts


def partitions_of(input_bytes: int, partition_bytes: int) -> int:
    """Number of partitions of a pool: as configured, but more for a small input so that several workers can share it."""
    most, least = math.ceil(input_bytes / partition_bytes), math.ceil(input_bytes / _LEAST_BYTES)
    return max(1, most, min(least, _SHARED_BY))


def take_rows(pool_files: Sequence[str], row_ids: Sequence[str]) -> pa.Table:
    """The pool's rows with these ids, in the given order; read by one task per file, so only they reach the caller.

    Raises:
        KeyError: none of the files contains an id.
    """
    ordered = sorted(set(row_ids))
    calls = [(path, ids) for path in pool_files if (ids := _ids_within(path, ordered))]
    found = run_tasks(read_rows, calls, Silent(), "partitions")
    if not row_ids:
        return pq.read_schema(pool_files[0]).empty_table()
    table = pa.concat_tables(found) if found else pa.table({"row_id": pa.array([], pa.string())})
    places = {row_id: place for place, row_id in enumerate(table["row_id"].to_pylist())}
    missing = [row_id for row_id in row_ids if row_id not in places]
    if missing:
        raise KeyError(f"{len(missing)} row ids are not in the pool, the first is {missing[0]}")
    return take_numbered(table, np.array([places[row_id] for row_id in row_ids]))


def take_numbered(table: pa.Table, numbers: NDArray[np.int64]) -> pa.Table:
    """The rows with these numbers, in this order, in chunks of `CHUNK_ROWS`."""
    # `take` of a whole table would first join its chunks, whose texts may not fit into one.
    batches = table.to_batches()
    starts = np.concatenate([[0], np.cumsum([batch.num_rows for batch in batches])]).astype(np.int64)
    chunks = []
    for start in range(0, max(len(numbers), 1), CHUNK_ROWS):
        rows, order = np.unique(numbers[start : start + CHUNK_ROWS], return_inverse=True)
        held_by = np.searchsorted(starts, rows, side="right") - 1
        parts = [batches[at].take(pa.array(rows[held_by == at] - starts[at])) for at in np.unique(held_by)]
        chunks.append(pa.Table.from_batches(parts, table.schema).combine_chunks().take(pa.array(order)))
    return pa.concat_tables(chunks)


def by_row_id(table: pa.Table) -> pa.Table:
    """The rows of a table with texts, sorted by id; `sort_by` does not support more than 2 GiB of text."""
    return take_numbered(table, np.argsort(np.array(table["row_id"].to_pylist(), dtype=str), kind="stable"))


def _ids_within(path: str, ordered: list[str]) -> list[str]:
    """The sorted ids that the file may contain according to its footer."""
    metadata = pq.read_metadata(path)
    if not metadata.num_rows:
        return []
    column = metadata.schema.names.index("row_id")
    ranges = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
    low, high = min(str(r.min) for r in ranges), max(str(r.max) for r in ranges)
    return ordered[bisect_left(ordered, low) : bisect_right(ordered, high)]


def _parse_files(layout: Layout, inputs: Sequence[Input], config: PoolConfig, progress: Progress) -> dict[str, dict[str, Any]]:
    settings = config.model_dump(include={"format", "columns", "turns", "max_chars", "score_column"})
    calls = [
        (FileTask(file, source, layout.n_partitions, **settings), layout.file_folder(index))
        for index, (source, file) in enumerate(zip(layout.sources, inputs, strict=True))
    ]
    try:
        files = dict(zip(layout.sources, run_tasks(parse_file, calls, progress, "files"), strict=True))
    except InputError as error:
        raise InputError(f"pool.data: {error}") from None
    for source, facts in files.items():
        if facts["unreadable"]:
            lost = f", about {facts['lost']:,} more rows" if facts["lost"] else ""
            progress.note(f"{source}: {facts['unreadable']}{lost}; the {facts['good']:,} good rows before that are used")
    return files


def _sample_end(layout: Layout, sample: int | None, progress: Progress) -> Threshold | None:
    if sample is None:
        return None
    run_tasks(write_keys, [(layout, partition, sample) for partition in range(layout.n_partitions)], progress, "partitions")
    threshold: Threshold | None = run_tasks(find_threshold, [(layout, sample)], Silent(), "samples")[0]
    return threshold


def _check(files: dict[str, dict[str, Any]], config: PoolConfig, quarantine: Path) -> None:
    read, good, lost = (sum(facts[key] for facts in files.values()) for key in ("rows", "good", "lost"))
    bad = read - good
    first = "; ".join([f"{source} {text}" for source, facts in files.items() for text in facts["first_bad"]][:3])
    if not good:
        found = f"all {read:,} rows are bad: {first}" if read else "the input contains no rows"
        expected = "conversations, messages, instruction/output or prompt/completion; name other keys in pool.columns"
        if config.format != "auto":
            expected = f"rows of pool.format {config.format}; with pool.format=auto the format is detected"
        raise InputError(f"pool.data: {_some(files)}: {found}; expected {expected}")
    limit = bad_rows_allowed(read + lost, config.max_bad_rows)
    if bad + lost > limit:
        after = f", and about {lost:,} more cannot be read after them" if lost else ""
        raise InputError(
            f"pool.data: {bad:,} of {read:,} rows are bad{after}, {limit:,} are allowed: {first}; see {quarantine} for all; "
            "fix the data or raise pool.max_bad_rows"
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _facts(files: dict[str, dict[str, Any]], parts: list[dict[str, int]]) -> dict[str, Any]:
    reasons: Counter[str] = sum((Counter(facts["reasons"]) for facts in files.values()), Counter())
    total = {key: sum(part[key] for part in parts) for key in ("rows", "unique", "duplicates", "tokens", "score_missing")}
    early = sum(facts["duplicates"] for facts in files.values())
    return {
        "files": {source: {key: facts[key] for key in _FILE_FACTS if key in facts} for source, facts in files.items()},
        "rows_read": sum(facts["rows"] for facts in files.values()),
        "bad_rows": reasons.total(),
        "bad_reasons": dict(reasons.most_common()),
        "lost_rows": sum(facts["lost"] for facts in files.values()),
        "duplicates": early + total["duplicates"],
        "sampled_from": total["unique"],
        "rows": total["rows"],
        "tokens": total["tokens"],
        "score_missing": total["score_missing"],
    }
