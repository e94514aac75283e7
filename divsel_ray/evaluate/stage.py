"""Evaluation on Ray: each task loads one base model in its own process and writes one file per measurement.

A file's name is a digest of the model's content and of everything else that the result depends on, so no measurement is
repeated.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import ray

from divsel_ray.actors import answer_of
from divsel_ray.config import EmbedConfig, EvaluateConfig
from divsel_ray.embed.stage import embed_pool
from divsel_ray.errors import JobError
from divsel_ray.evaluate.loading import LoadedModel
from divsel_ray.evaluate.measures import Measure
from divsel_ray.evaluate.models import Model
from divsel_ray.models.references import fingerprint
from divsel_ray.models.text import read_template
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import digest, file_digest
from divsel_ray.tasks import MAX_RETRIES

SECTION = "evaluate"
_POLL_SECONDS = 1.0


class _Due(NamedTuple):
    """A measurement without a result yet."""

    model: Model
    measure: Measure
    target: Path


def chat_template_of(config: EvaluateConfig) -> str | None:
    """The text of the configured chat template, or None for the models' own.

    Raises:
        InputError: the file cannot be read, or is not a Jinja template.
    """
    return read_template(config.chat_template, f"{SECTION}.chat_template")


def measure_all(
    wanted: Sequence[tuple[Model, Measure]],
    folder: Path,
    config: EvaluateConfig,
    connect: Callable[[], Cluster],
    progress: Progress,
) -> list[Path]:
    """Run the missing measurements, as many at a time as the cluster has room for.

    Args:
        wanted: m pairs of a model and a measure.
        folder: output folder; existing files are not computed again.
        config: settings of the workers and their time limit.
        connect: connects to the cluster; called only if there is something to do.
        progress: receives the number of measurements done.

    Returns:
        m files, in the order of `wanted`.

    Raises:
        InputError: a model or a requirement of a measurement cannot be loaded, or no node has room for a worker.
        JobError: a task failed, or took longer than `config.time_limit_s`.
    """
    targets = [_target(folder, model, measure) for model, measure in wanted]
    due = {
        target: _Due(model, measure, target)
        for target, (model, measure) in zip(targets, wanted, strict=True)
        if not target.exists()
    }
    if due:
        cluster = connect()
        cluster.check(SECTION, config.workers)
        groups = _groups(list(due.values()), cluster.count(config.workers, len(due)))
        _run(groups, config, cluster, progress)
    return targets


def pending(wanted: Sequence[tuple[Model, Measure]], folder: Path) -> bool:
    """Whether any measurement is missing."""
    return not all(_target(folder, model, measure).exists() for model, measure in wanted)


def embed_rows(rows: Path, config: EmbedConfig, folder: Path, connect: Callable[[], Cluster], progress: Progress) -> np.ndarray:
    """Embed rows with a run's encoder: (n, d) float16 in the order of the rows; the vectors are kept in the folder.

    Args:
        rows: Parquet file (row_id, messages, prompt, completion).
        config: settings of the run's encoder.
        folder, connect, progress: see `measure_all`.

    Raises:
        InputError: the encoder cannot be loaded.
        JobError: the encoder could not be scheduled, or its server's spending limit is reached.
    """
    place = folder / f"embed-{digest([file_digest(rows), fingerprint(config.model), config.identity()])}"
    target = place / rows.name
    if not target.exists():
        place.mkdir(parents=True, exist_ok=True)
        embed_pool([str(rows)], config, place, connect(), progress)
    column = pq.read_table(target)["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _target(folder: Path, model: Model, measure: Measure) -> Path:
    stem, suffix = measure.file
    return folder / f"{stem}-{digest([*model.fingerprint, *measure.identity()])}{suffix}"


def _groups(due: Sequence[_Due], places: int) -> list[list[_Due]]:
    """Group measurements that share a loaded base model, and split them into as many groups as can run at the same time."""
    together: dict[tuple[str, bool], list[_Due]] = {}
    for one in due:
        together.setdefault((one.model.base, one.measure.own_engine), []).append(one)
    parts = {key: min(places, len(group)) for key, group in together.items()}
    return [group[part :: parts[key]] for key, group in together.items() for part in range(parts[key])]


def _measure(group: Sequence[_Due], config: EvaluateConfig) -> None:
    loaded = functools.cache(
        lambda: LoadedModel(group[0].model.base, config.dtype, chat_template_of(config), config.trust_remote_code)
    )
    for one in group:
        one.measure.check()
    for one in group:
        if not one.target.exists():
            one.measure.write(one.model, loaded, one.target)


def _run(groups: Sequence[list[_Due]], config: EvaluateConfig, cluster: Cluster, progress: Progress) -> None:
    options = {"num_cpus": _cpus(config, cluster, len(groups)), "num_gpus": cluster.gpus_per_worker(config.workers)}
    # A reused process would keep the model and a GPU's memory.
    remote = ray.remote(max_calls=1, max_retries=MAX_RETRIES, **options)(_measure)
    places = cluster.count(config.workers, len(groups))
    files = [one.target for group in groups for one in group]
    waiting, running = list(groups)[::-1], dict[ray.ObjectRef, float]()
    try:
        while waiting or running:
            while waiting and len(running) < places:
                group = waiting.pop()
                limit = config.time_limit_s * len(group)
                running[remote.remote(group, config)] = time.monotonic() + limit
            done, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
            for reference in done:
                del running[reference]
                answer_of(reference, SECTION)
            progress.advance(sum(file.exists() for file in files), len(files), "measurements")
            _check_time(running, config)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _check_time(running: dict[ray.ObjectRef, float], config: EvaluateConfig) -> None:
    if any(time.monotonic() > end for end in running.values()):
        raise JobError(
            f"{SECTION}: not finished after {config.time_limit_s:g} s per measurement; finished work is kept; raise "
            "time_limit_s, or measure less (--limit)"
        )


def _cpus(config: EvaluateConfig, cluster: Cluster, groups: int) -> float:
    """CPUs of a task: as configured, else this machine's cores divided among the tasks that run at the same time."""
    if "workers" in config.model_fields_set or not cluster.local or cluster.gpus:
        return config.workers.cpus
    return float(max(1, cluster.cpus // min(groups, cluster.cpus)))
