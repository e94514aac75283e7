"""Recompute a selection from the contents of its run folder, and compare.

Embeddings, clusters, quality and gaps are used as committed; draws and weight updates are recomputed. Identical results show
that the selection is what its manifest says, on any machine and with any version that draws the same way.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.config import Config
from divsel_ray.config.files import build_config
from divsel_ray.data.conversation import row_id
from divsel_ray.data.export import SELECTION
from divsel_ray.data.remote import WORK_SUFFIX
from divsel_ray.errors import InputError, JobError, one_line
from divsel_ray.pipeline import ids_digest, nested_file, nested_name
from divsel_ray.report.records import existing, read_stages, round_numbers
from divsel_ray.resources import connect
from divsel_ray.rounds import update_of_round
from divsel_ray.select.stage import draw_round
from divsel_ray.stage_names import kind_of, round_name
from divsel_ray.stages import Before, Sources, listed_files, plan_draw, with_lists
from divsel_ray.store import RUN_MANIFEST, Stage

_READ = ("pool", "clean", "embed", "cluster", "quality", "semantic", "draw", "score", "weights")
"""Stages that a selection is computed from."""


def verify_run(folder: Path) -> dict[str, Any]:
    """Redraw every round and compare rows, weights and reasons with the committed ones, and rows with the files written.

    Returns:
        {"verified": rows, "draws", "weight_updates"}.

    Raises:
        InputError: the folder does not contain a finished run, or lacks the inputs of a draw.
        JobError: something differs; the message says what.
    """
    manifest, _ = read_stages(folder)
    config = build_config(manifest["config"], str(folder / RUN_MANIFEST))
    stages = _stages(folder, manifest)
    rounds = round_numbers(stages)
    _check_result(folder, manifest, stages[round_name(rounds[-1], "draw")])
    for file in _written(folder, config):
        _check_texts(file)
    connect()
    updates = _replay(config, stages, len(rounds))
    return {"verified": manifest["rows"], "draws": len(rounds), "weight_updates": updates}


def _stages(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Stage]:
    stages = {}
    for entry in manifest["stages"]:
        name, key = entry["stage"], entry["key"]
        stages[name] = Stage(name, key, folder / name / key, {})
        if not stages[name].committed:
            raise InputError(f"{folder}: stage {name}/{key} is incomplete; run the job again to rebuild it")
        if kind_of(name) in _READ and (damaged := stages[name].damaged()):
            path = stages[name].folder / damaged[0]
            raise JobError(f"{path}: has changed since it was committed; remove {name}/{key} and run the job again")
    return stages


def _written(folder: Path, config: Config) -> list[Path]:
    """The files of the selection, in the run folder and, for a run of `divsel select`, next to it."""
    names = [SELECTION, *map(nested_name, config.nested)]
    files = [folder / f"{name}{suffix}" for name in names for suffix in (".parquet", ".jsonl")]
    if folder.name.endswith(WORK_SUFFIX):
        target = folder.with_name(folder.name.removesuffix(WORK_SUFFIX))
        files += [path for path in (target, *(nested_file(target, one) for one in config.nested)) if path.is_file()]
    return files


def _check_texts(file: Path) -> None:
    """Check that the id of every row is still the hash of its conversation."""
    for number, row in enumerate(_rows_of(file), start=1):
        try:
            same = row_id(row["messages"]) == row["row_id"]
        except (KeyError, TypeError):
            same = False
        if not same:
            raise JobError(f"{file}: row {number}: its messages do not match its row_id; the file was changed")


def _rows_of(file: Path) -> Iterator[dict[str, Any]]:
    try:
        if file.suffix == ".parquet":
            for batch in pq.ParquetFile(file).iter_batches(columns=["row_id", "messages"]):
                yield from batch.to_pylist()
        else:
            with file.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)
    except (OSError, ValueError) as error:
        raise JobError(f"{file}: cannot be read ({one_line(error)}); run the job again to rewrite it") from None


def _check_result(folder: Path, manifest: Mapping[str, Any], last: Stage) -> None:
    file = existing(folder / f"{SELECTION}.parquet")
    ids = [row["row_id"] for row in _rows_of(file)]
    if ids_digest(ids) != manifest["row_ids_sha256"]:
        raise JobError(f"{folder}/selection.parquet: its row ids do not match {RUN_MANIFEST}; the file was changed")
    drawn = pq.read_table(last.folder / "selected.parquet", columns=["row_id"])["row_id"].to_pylist()
    if ids != drawn:
        raise JobError(f"{folder}/selection.parquet: its row ids do not match those drawn by {last.name}")


def _replay(config: Config, stages: Mapping[str, Stage], rounds: int) -> int:
    """Repeat every draw and every weight update; returns the number of updates."""
    pool = stages.get("clean", stages["pool"])
    sources = Sources(pool, stages["embed"], stages["cluster"], stages.get("quality"), stages.get("semantic"))
    before: Before | None = None
    updates = 0
    for number in range(1, rounds + 1):
        drawn = stages[round_name(number, "draw")]
        _compare_draw(config, sources, drawn, drawn.facts["asked"], before)
        if config.refine is not None:
            before = Before(drawn, stages[round_name(number, "train")], stages[round_name(number, "weights")])
            _compare_weights(config, number, before, stages[round_name(number, "score")])
            updates += 1
    return updates


def _compare_draw(config: Config, sources: Sources, drawn: Stage, size: int, before: Before | None) -> None:
    copies = {name: drawn.folder / f"{name}{path.suffix}" for name, path in listed_files(config.select).items()}
    with tempfile.TemporaryDirectory() as folder:
        plan = with_lists(plan_draw(config, size, before), copies)
        draw_round(sources.files, sources.clusters.facts["k"], plan, Path(folder))
        for file in ("selected.parquet", *(["nested.parquet"] if config.nested else [])):
            _compare_tables(drawn, pq.read_table(drawn.folder / file), pq.read_table(Path(folder) / file))


def _compare_tables(drawn: Stage, committed: pa.Table, again: pa.Table) -> None:
    for name in committed.column_names:
        if not again[name].combine_chunks().equals(committed[name].combine_chunks()):
            theirs, ours = (set(table["row_id"].to_pylist()) for table in (committed, again))
            rows = f"{len(theirs - ours):,} of {len(theirs):,} rows differ" if theirs != ours else f"the column {name} differs"
            raise JobError(f"{drawn.name}: redrawn from the same artefacts, {rows}")


def _compare_weights(config: Config, number: int, before: Before, scored: Stage) -> None:
    again = update_of_round(config, number, before.draw, scored)
    if not np.allclose(again.after, before.weights.facts["weights"], rtol=1e-9, atol=0):
        raise JobError(f"{before.weights.name}: recomputed from the same gaps, the weights differ")
