"""Scoring on Ray: fitting the stand-in reward model, and the quality of every pool row.

Each pool partition is a unit of work, scored by one actor. Units depend on the content, never on the cluster, so the
batches, and with them the scores, are the same for any number of actors; a finished unit is a file and is not scored
again after a kill.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from divsel_ray.actors import map_on_actors
from divsel_ray.config import RewardConfig, Workers
from divsel_ray.data.aligned import check_given, mappable, take_given, unpack, width_of
from divsel_ray.errors import InputError, first_line
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.score.bradley_terry import THREADS, fit_reward_model
from divsel_ray.score.judge_stage import rate_parts
from divsel_ray.score.parts import NO_COUNTS, Part, count_part, count_rows, score_part, summarise, write_part
from divsel_ray.score.sample import draw_exchanges, draw_per_cluster
from divsel_ray.score.scorer import Scorer
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.store import read_json, write_array, write_json, write_table
from divsel_ray.tasks import MAX_RETRIES, result_of, run_task, run_tasks


def reward_reference(config: RewardConfig, folder: Path) -> str:
    """Reference of the scorer of completions: the named model, the judge's name, or the model `build_reward` fits in `folder`."""
    named = config.model or config.perplexity or (config.judge.model if config.judge else None)
    return named or str(folder / "model")


def build_reward(
    pool_files: list[str], config: RewardConfig, seed: int, folder: Path, cluster: Cluster, progress: Progress
) -> dict[str, Any]:
    """Fit the stand-in reward model to rows of the pool in one task, and save it in `folder/model`.

    Returns:
        As `fit_reward_model`.

    Raises:
        InputError: `config.fit` is not set, the pool is too small, or the base model cannot be loaded.
        RayError: the task repeatedly lost its process or node.
    """
    if config.fit is None:
        raise InputError("reward.fit: not set; no reward model can be fitted without it")
    facts = folder / "fit.json"
    if not (facts.is_file() and (folder / "model" / "config.json").is_file()):
        steps = folder / "steps.json"
        task = _fit.options(num_cpus=min(THREADS, cluster.node_cpus)).remote(pool_files, config, seed, folder, steps)
        _follow(task, steps, progress)
        steps.unlink(missing_ok=True)
    return dict(read_json(facts))


@ray.remote(max_retries=2, max_calls=1)
def _fit(pool_files: list[str], config: RewardConfig, seed: int, folder: Path, steps: Path) -> None:
    assert config.fit is not None
    exchanges = draw_exchanges(pool_files, config.fit.prompts + config.fit.held_out, seed)
    facts = fit_reward_model(
        exchanges, config.fit, seed, folder / "model", lambda done, total: write_json(steps, {"done": done, "total": total})
    )
    write_json(folder / "fit.json", facts)


def _follow(task: ray.ObjectRef[Any], steps: Path, progress: Progress) -> None:
    """Wait for the task, and report the steps that it records."""
    ready: Sequence[Any] = []
    while not ready:
        ready, _ = ray.wait([task], timeout=0.5)
        with contextlib.suppress(FileNotFoundError):
            at = read_json(steps)
            progress.advance(at["done"], at["total"], "steps")
    result_of(task)


def score_pool(
    pool_files: list[str],
    spec: ScorerSpec,
    folder: Path,
    cluster: Cluster,
    workers: Workers,
    progress: Progress,
    wanted: str = "",
) -> dict[str, Any]:
    """Write one Parquet file for each pool partition, under the partition's name.

    Columns: row_id, quality (float64, null if missing) and, if the scorer has any, the raw signals behind it (DEITA:
    complexity, response_quality; a judge: requests, prompt_tokens, output_tokens, failed).

    Args:
        pool_files: the partitions.
        spec: the scorer.
        folder: where to write.
        cluster, workers: where to compute.
        progress: receives the number of rows done.
        wanted: file from `draw_wanted`: only these rows are scored, and the others are left out of the files.

    Returns:
        {"rows", "missing", "mean", "sd", "seconds"}; mean and population sd are over rows with a quality. For a judge also
        the other counts of `rate_parts`.

    Raises:
        InputError: the model cannot be loaded, or the pool has no `score` column for `column`.
        JobError: no row could be scored, or a judge's spending limit is reached.
    """
    parts = [Part(file, str(folder / Path(file).name), "quality", wanted=wanted) for file in pool_files]
    if spec.kind == "judge":
        return rate_parts(parts, spec, cluster, workers, progress)
    started = time.perf_counter()
    array = mappable(spec.model, folder) if spec.kind == "given" else None
    if array is not None:
        run_tasks(unpack, [(spec.model, array, _GIVEN[0])], progress, "files")
        spec = replace(spec, model=str(array))
    total = count_rows(parts)
    counts: list[dict[str, Any]] = []
    for count in _run_parts(parts, spec, cluster, workers):
        counts.append(count)
        if count["failure"]:
            raise InputError(count["failure"])
        progress.advance(sum(count["rows"] for count in counts), total, "rows")
    if array is not None:
        array.unlink()
    return {**summarise(counts), "seconds": round(time.perf_counter() - started, 3)}


_GIVEN = ("quality.source", "quality")
"""The setting that names a file of scores, and the name of their column."""


def check_scores(given: str, records: Mapping[str, int]) -> None:
    """Check that given scores can be aligned with the pool.

    Args:
        given: file or folder, see `data.aligned`.
        records: number of records of each input file.

    Raises:
        InputError: a column is missing, an array does not have one number per record of a single input file, or has vectors.
    """
    check_given(given, *_GIVEN, records)
    if width_of(given, *_GIVEN):
        raise InputError(f"{_GIVEN[0]}: {given}: contains vectors; expected a number for each row")


UNSCORED = "oversample/unscored.parquet"
"""File next to the quality files: the rows that were not drawn for scoring and must not be selected."""


def draw_wanted(cluster_files: list[str], counts: np.ndarray, seed: int, folder: Path) -> str:
    """Draw the rows to be scored (see `draw_per_cluster`) in one task; returns the file of their ids for `score_pool`.

    Writes their ids to `folder/oversample/wanted.npy`, and those of all other rows to `folder/oversample/unscored.parquet`.
    """
    wanted = folder / Path(UNSCORED).with_name("wanted.npy")
    if not (wanted.is_file() and (folder / UNSCORED).is_file()):
        run_task(_draw_wanted, cluster_files, counts, seed, wanted, folder / UNSCORED)
    return str(wanted)


def _draw_wanted(cluster_files: list[str], counts: np.ndarray, seed: int, wanted: Path, unscored: Path) -> None:
    drawn, others = draw_per_cluster(cluster_files, counts, seed)
    write_table(unscored, pa.table({"row_id": pa.array(others.astype("U32"), pa.string())}))
    write_array(wanted, drawn)


def _run_parts(parts: list[Part], spec: ScorerSpec, cluster: Cluster, workers: Workers) -> Iterator[dict[str, Any]]:
    """Score the units and yield each one's counts when it is done: many units by a pool of actors, a single one by a task.

    A task can reuse a process in which an earlier task has loaded the libraries; a new actor spends seconds on that.
    """
    gpus = 0 if not spec.computed else cluster.gpus_per_worker(workers)
    threads = max(1, int(workers.cpus))
    if len(parts) == 1:
        task = ray.remote(num_cpus=workers.cpus, num_gpus=gpus, max_retries=MAX_RETRIES)(_fill_part)
        yield ray.get(task.remote(parts[0], spec, partial(spec.load, threads)))
        return
    items, settings = [asdict(part) for part in parts], {"spec": spec, "threads": threads}
    actors = cluster.count(workers, max(1, len(parts)))
    for batch in map_on_actors(items, ScorePart, settings, "quality", workers, actors, cluster, gpus=gpus):
        yield _only(batch)


class ScorePart:
    """An actor that loads the scorer once, when first needed, and scores one unit of work per call."""

    def __init__(self, spec: ScorerSpec, threads: int) -> None:
        self._spec, self._load = spec, cache(partial(spec.load, threads))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score the unit named in the batch of one unless its output exists; returns counts, never scores."""
        return _one_row(_fill_part(Part(**_only(batch)), self._spec, self._load))


def _fill_part(part: Part, spec: ScorerSpec, load: Callable[[], Scorer]) -> dict[str, Any]:
    """Write the file of a unit unless it exists; returns its counts, with an error that the user must fix as `failure`."""
    try:
        if spec.computed:
            return score_part(part, load)
        if not Path(part.target).is_file():
            write_part(part, *(_read_column if spec.kind == "column" else _read_given)(part.source, spec.model), {})
        return count_part(part)
    except InputError as error:
        return NO_COUNTS | {"failure": str(error)}


def _read_given(file: str, given: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    table = pq.read_table(file, columns=["row_id", "position"])
    try:
        return table["row_id"], take_given(given, *_GIVEN, table).astype(np.float64)
    except ValueError as error:
        raise InputError(f"{_GIVEN[0]}: {given}: expected a number for each row ({first_line(error)})") from None


def _only(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """The one row of a batch as plain values."""
    return {name: values.tolist()[0] for name, values in batch.items()}


def _one_row(values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array([value]) for name, value in values.items()}


def _read_column(file: str, name: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    if "score" not in pq.read_schema(file).names:
        raise InputError(f"quality.source column:{name}: the pool contains no scores; set pool.score_column: {name}")
    table = pq.read_table(file, columns=["row_id", "score"])
    return table["row_id"], table["score"].cast(pa.float64()).to_numpy()
