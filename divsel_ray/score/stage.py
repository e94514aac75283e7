"""Scoring on Ray: fitting the stand-in reward model, the quality of every pool row, and scores of completions.

A pool partition, or a fixed slice of an exchanges file, is one unit of work, done whole by one actor. Units are cut
from the content, never from the cluster, so the batches and with them the scores are the same for any number of
actors; a finished unit is a file and is not scored again after a kill.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from divsel_ray.config import RewardConfig, Workers
from divsel_ray.data.aligned import take_given
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.score.bradley_terry import THREADS, fit_reward_model
from divsel_ray.score.sample import draw_exchanges, read_exchanges
from divsel_ray.score.scorer import Exchange, Scorer
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.store import atomic_path, read_json, write_json

SLICE = 512
"""Exchanges per unit of work; part of what makes scores reproducible."""


def reward_reference(config: RewardConfig, folder: Path) -> str:
    """The model that judges: the named one, or the one that `build_reward` fits into `folder`."""
    return config.model or str(folder / "model")


def build_reward(
    pool_files: list[str], config: RewardConfig, seed: int, folder: Path, cluster: Cluster, progress: Progress
) -> dict[str, Any]:
    """Fit the stand-in reward model on rows of the pool, into `folder/model`, in one task.

    Returns:
        What `fit_reward_model` reports.

    Raises:
        InputError: `config.fit` is not set, the pool is too small, or the base model cannot be loaded.
        JobError: the task failed.
    """
    if config.fit is None:
        raise InputError("reward.fit: not set; there is no reward model to fit")
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
    """Wait for the task, passing on the steps it writes down."""
    ready: Sequence[Any] = []
    while not ready:
        ready, _ = ray.wait([task], timeout=0.5)
        with contextlib.suppress(FileNotFoundError):
            at = read_json(steps)
            progress.advance(at["done"], at["total"], "steps")
    try:
        ray.get(task, timeout=60)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise JobError(f"fitting the reward model failed: {error.cause!r}") from error


def score_pool(
    pool_files: list[str], spec: ScorerSpec, folder: Path, cluster: Cluster, workers: Workers, progress: Progress
) -> dict[str, Any]:
    """Write one Parquet file (row_id, quality: float64, null where missing) for each pool partition, under its name.

    Returns:
        {"rows", "missing", "mean", "sd", "seconds"}; mean and sd (of the population) over rows with a quality.

    Raises:
        InputError: the model cannot be loaded, or the pool has no `score` column for `column`.
        JobError: not one row could be scored.
    """
    parts = [_Part(file, str(folder / Path(file).name), "quality") for file in pool_files]
    return _score_parts(parts, spec, cluster, workers, progress)


def score_exchanges(
    exchanges_file: str,
    spec: ScorerSpec,
    out_file: Path,
    cluster: Cluster,
    workers: Workers,
    progress: Progress,
) -> dict[str, Any]:
    """Score completions (Parquet: row_id, messages before the completion, completion) into one file (row_id, score).

    The rows come out in row id order; a score is null where missing. Slices of 512 exchanges in that order are the
    units of work; their files lie beside `out_file` until all are there.

    Returns:
        {"rows", "missing", "mean", "sd", "seconds"}.

    Raises:
        InputError, JobError: as `score_pool`.
    """
    folder = out_file.with_name(f"{out_file.name}.parts")
    rows = pq.read_metadata(exchanges_file).num_rows
    starts = range(0, rows, SLICE)
    parts = [_Part(exchanges_file, str(folder / f"{start:09d}.parquet"), "score", start, start + SLICE) for start in starts]
    facts = _score_parts(parts, spec, cluster, workers, progress)
    with atomic_path(out_file) as path:
        pq.write_table(pa.concat_tables([_EMPTY_SCORES, *(pq.read_table(part.target) for part in parts)]), path)
    shutil.rmtree(folder, ignore_errors=True)
    return facts


_EMPTY_SCORES = pa.schema([("row_id", pa.string()), ("score", pa.float64())]).empty_table()


@dataclass(frozen=True)
class _Part:
    """A unit of work: rows start..stop of `source` in row id order, or a whole pool partition where stop is 0."""

    source: str
    target: str
    column: str
    start: int = 0
    stop: int = 0


def _score_parts(parts: list[_Part], spec: ScorerSpec, cluster: Cluster, workers: Workers, progress: Progress) -> dict[str, Any]:
    started = time.perf_counter()
    total = sum(_size(part) for part in parts)
    counts: list[dict[str, Any]] = []
    for count in _run_parts(parts, spec, cluster, workers):
        counts.append(count)
        if count["failure"]:
            raise InputError(count["failure"])
        progress.advance(sum(count["rows"] for count in counts), total, "rows")
    return {**_summary(counts), "seconds": round(time.perf_counter() - started, 3)}


def _run_parts(parts: list[_Part], spec: ScorerSpec, cluster: Cluster, workers: Workers) -> Iterator[dict[str, Any]]:
    """Score the units, each as it is done: many by a pool of actors, a single one by a task.

    A task finds a process in which an earlier one has loaded the libraries; a new actor spends seconds on that.
    """
    gpus = 0 if not spec.computed else cluster.gpus_per_worker(workers)
    threads = max(1, int(workers.cpus))
    if len(parts) == 1:
        task = ray.remote(num_cpus=workers.cpus, num_gpus=gpus, max_retries=2)(_score_alone)
        yield ray.get(task.remote(parts[0], spec, threads))
        return
    work = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=max(1, len(parts))).map_batches(
        ScorePart,
        batch_size=1,
        fn_constructor_kwargs={"spec": spec, "threads": threads},
        compute=ray.data.ActorPoolStrategy(size=cluster.count(workers, max(1, len(parts)))),
        num_cpus=workers.cpus,
        num_gpus=gpus,
    )
    for batch in work.iter_batches(batch_size=1) if parts else ():
        yield _only(batch)


def _score_alone(part: _Part, spec: ScorerSpec, threads: int) -> dict[str, Any]:
    return _only(ScorePart(spec, threads)(_one_row(asdict(part))))


def _size(part: _Part) -> int:
    rows = int(pq.read_metadata(part.source).num_rows)
    return min(part.stop, rows) - part.start if part.stop else rows


class ScorePart:
    """An actor that loads the scorer once, when it first needs it, and scores one unit of work per call."""

    def __init__(self, spec: ScorerSpec, threads: int) -> None:
        self._spec = spec
        self._threads = threads
        self._scorer: Scorer | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score the unit named in the batch of one, unless its output is there; return counts, never scores."""
        part = _Part(**_only(batch))
        try:
            if not Path(part.target).exists():
                self._write(part, *self._score(part))
        except InputError as error:
            return _one_row(_NO_COUNTS | {"failure": str(error)})
        problem = self._scorer.problem if self._scorer else ""
        return _one_row(_count(part) | {"problem": problem})

    def _score(self, part: _Part) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Row ids and scores (n,), NaN where missing."""
        if self._spec.kind == "column":
            return _read_column(part.source, self._spec.model)
        if self._spec.kind == "given":
            table = pq.read_table(part.source, columns=["row_id", "position"])
            return table["row_id"], take_given(self._spec.model, "quality.source", "quality", table).astype(np.float64)
        exchanges = _read_slice(part) if part.stop else read_exchanges(part.source)
        row_ids = pa.chunked_array([[exchange.row_id for exchange in exchanges]], pa.string())
        return row_ids, self._load().score(exchanges)

    def _load(self) -> Scorer:
        if self._scorer is None:
            import torch

            torch.set_num_threads(self._threads)
            self._scorer = self._spec.load()
        return self._scorer

    def _write(self, part: _Part, row_ids: pa.ChunkedArray, scores: np.ndarray) -> None:
        values = pa.array(scores, pa.float64(), mask=~np.isfinite(scores))
        with atomic_path(part.target) as path:
            pq.write_table(pa.table({"row_id": row_ids, part.column: values}), path)


def _only(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """The one row of a batch as plain values."""
    return {name: values.tolist()[0] for name, values in batch.items()}


def _one_row(values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array([value]) for name, value in values.items()}


def _read_column(file: str, name: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    if "score" not in pq.read_schema(file).names:
        raise InputError(f"quality.source column:{name}: the pool keeps no scores; set pool.score_column: {name}")
    table = pq.read_table(file, columns=["row_id", "score"])
    return table["row_id"], table["score"].cast(pa.float64()).to_numpy()


def _read_slice(part: _Part) -> list[Exchange]:
    table = pq.read_table(part.source, columns=["row_id", "messages", "completion"]).sort_by("row_id")
    columns = table.slice(part.start, part.stop - part.start).to_pydict()
    return [Exchange(*row) for row in zip(columns["row_id"], columns["messages"], columns["completion"], strict=True)]


_NO_COUNTS: dict[str, Any] = {"rows": 0, "missing": 0, "mean": 0.0, "squares": 0.0, "problem": "", "failure": "", "target": ""}


def _count(part: _Part) -> dict[str, Any]:
    """Rows, missing scores, and mean and summed squared deviation of the others, of a finished unit."""
    column = pq.read_table(part.target, columns=[part.column])[part.column]
    scores = column.drop_null().to_numpy()
    mean = float(scores.mean()) if len(scores) else 0.0
    counts = {"rows": len(column), "missing": column.null_count, "mean": mean, "squares": float(((scores - mean) ** 2).sum())}
    return _NO_COUNTS | counts | {"target": part.target}


def _summary(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all units together, added in the order of their names, whatever order they ended in.

    Raises:
        JobError: there are rows, and not one has a score.
    """
    counts = sorted(counts, key=lambda count: str(count["target"]))
    rows, missing = (sum(count[name] for count in counts) for name in ("rows", "missing"))
    scored = [count["rows"] - count["missing"] for count in counts]
    if rows and not sum(scored):
        problem = next((count["problem"] for count in counts if count["problem"]), "no value is a finite number")
        raise JobError(f"not one of {rows} rows could be scored: {problem}")
    divisor = max(1, sum(scored))
    mean = sum(n * count["mean"] for n, count in zip(scored, counts, strict=True)) / divisor
    squares = sum(count["squares"] + n * (count["mean"] - mean) ** 2 for n, count in zip(scored, counts, strict=True))
    return {"rows": rows, "missing": missing, "mean": mean, "sd": (squares / divisor) ** 0.5}
