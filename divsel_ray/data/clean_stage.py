"""Cleaning on Ray: one task per pool file, one per band of the sketches, and two that join; the driver sees counts only."""

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
"""Maximum number of rows whose keys one task holds."""


def build_clean(pool_files: Sequence[str], config: CleanConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Clean a pool: write files of the same names with the kept rows, and `removed.jsonl` with all others.

    Rows that are too short or too long are removed first, then those that share words with benchmarks, then near duplicates
    among the rest. A line of `removed.jsonl` contains row_id, source, step (min_tokens, max_tokens, benchmark,
    near_duplicate), reason and `of`: the benchmark row, or the id of the row kept instead. The result does not depend on how
    the pool is split into files or on the number of workers. A call on the folder of an interrupted one resumes it. While the
    stage runs, sketches take about 750 bytes per row and 4 per word on disk; one task holds one pool file, or 40 bytes for
    each of at most 16 million rows, or 100 bytes per pair of near duplicates.

    Args:
        pool_files: Parquet with row_id, messages, source, n_tokens and any other columns.
        config: what to remove.
        folder: the stage's folder; the caller commits it.
        progress: receives the number of finished files and bands.

    Returns:
        remaining `rows` and `tokens`, and `removed` (step to rows). Rows in = `rows` + all of `removed`.

    Raises:
        InputError: a benchmark file is missing or not fully readable, or no row is left.
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
    """The evaluation data files named by the settings.

    Raises:
        InputError: a file does not exist.
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
            f"see {folder / REMOVED}; relax the limits"
        )
    return {"rows": rows, "tokens": sum(part["tokens"] for part in parts), "removed": {step: removed[step] for step in STEPS}}
