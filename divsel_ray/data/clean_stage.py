"""Cleaning on Ray: one task per pool file, per band of the sketches, and two that join; the driver sees counts only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from divsel_ray.config import CleanConfig
from divsel_ray.data.clean import (
    REMOVED,
    STEPS,
    CleanLayout,
    join_removed,
    screen_part,
    write_benchmarks,
    write_clean_part,
)
from divsel_ray.data.inputs import find_inputs
from divsel_ray.data.remote import Input
from divsel_ray.data.twins import write_crowds, write_pairs, write_starts, write_twins
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress, Silent
from divsel_ray.store import remove_folder
from divsel_ray.tasks import run_tasks

BAND_ROWS = 1 << 24
"""Rows whose keys one task holds."""


def build_clean(pool_files: Sequence[str], config: CleanConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Clean a pool: files of the same names with the rows that stay, and `removed.jsonl` with all others.

    Too short or too long rows go first, then those that share words with benchmarks, then near duplicates of what is left.
    A line of `removed.jsonl` holds row_id, source, step (min_tokens, max_tokens, benchmark, near_duplicate), reason and
    `of`: the benchmark row, or the id of the row that stays instead. The result does not depend on how the pool is cut
    into files or on the number of workers. A folder in which an earlier call was stopped is continued. While the stage runs,
    sketches of about 750 bytes a row and 4 a word lie on disk; one task holds one pool file, or 40 bytes for each of at most
    16 million rows, or 100 bytes for each pair of near duplicates.

    Args:
        pool_files: Parquet with row_id, messages, source, n_tokens and any other columns.
        config: what goes.
        folder: the stage's folder; the caller commits it.
        progress: told of the files and bands as they are done.

    Returns:
        `rows` and `tokens` that are left, `removed` (step to rows). Rows in = `rows` + all of `removed`.

    Raises:
        InputError: a benchmark file is missing or cannot be read whole, or nothing is left.
    """
    layout, parts = CleanLayout(folder, tuple(pool_files)), range(len(pool_files))
    if config.benchmarks:
        run_tasks(write_benchmarks, [(layout, benchmark_files(config), config.ngram)], Silent(), "files")
    run_tasks(screen_part, [(layout, part, config) for part in parts], progress, "partitions")
    if config.near_duplicates is not None:
        _find_twins(layout, config.near_duplicates, progress)
    facts = run_tasks(write_clean_part, [(layout, part, config.near_duplicates) for part in parts], progress, "partitions")
    run_tasks(join_removed, [(layout,)], Silent(), "files")
    remove_folder(layout.raw)
    return _sum(facts, folder)


def benchmark_files(config: CleanConfig) -> list[Input]:
    """The files of evaluation data that the settings name.

    Raises:
        InputError: something is not there.
    """
    return find_inputs(config.benchmarks, "clean.benchmarks")


def _find_twins(layout: CleanLayout, threshold: float, progress: Progress) -> None:
    files = layout.twin_files(threshold)
    files = replace(files, pieces=max(1, math.ceil(run_tasks(write_starts, [(files,)], Silent(), "files")[0] / BAND_ROWS)))
    tasks = [(files, band, piece) for band, piece in files.tasks()]
    run_tasks(write_crowds, tasks, Silent(), "bands")
    run_tasks(write_pairs, tasks, progress, "bands")
    run_tasks(write_twins, [(files,)], Silent(), "groups")


def _sum(parts: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    removed = sum((Counter(part["removed"]) for part in parts), Counter[str]())
    rows = sum(part["rows"] for part in parts)
    if not rows:
        raise InputError(
            f"clean: none of {removed.total():,} rows is left ({', '.join(f'{removed[s]:,} {s}' for s in STEPS if removed[s])}); "
            f"all are listed in {folder / REMOVED}; loosen the limits"
        )
    return {"rows": rows, "tokens": sum(part["tokens"] for part in parts), "removed": {step: removed[step] for step in STEPS}}
