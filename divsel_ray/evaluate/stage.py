"""Evaluation on Ray: each task loads one base model, in a process of its own, and writes one file for each measurement.

A file's name is a digest of the model's content and of everything else that it depends on, so what was measured once is
not measured again.
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
    """A measurement that is not there yet."""

    model: Model
    measure: Measure
    target: Path


def chat_template_of(config: EvaluateConfig) -> str | None:
    """The text of the configured chat template, or None for the models' own.

    Raises:
        InputError: the file cannot be read, or is no Jinja template.
    """
    return read_template(config.chat_template, f"{SECTION}.chat_template")


def measure_all(
    wanted: Sequence[tuple[Model, Measure]],
    folder: Path,
    config: EvaluateConfig,
    connect: Callable[[], Cluster],
    progress: Progress,
) -> list[Path]:
    """Make what is not there yet, as much at a time as the cluster has places for.

    Args:
        wanted: m models and what to measure of each.
        folder: where the files go; those that are there are not made again.
        config: of the workers and their time.
        connect: joins the cluster where it is done; called only if something is to do.
        progress: told of measurements done.

    Returns:
        m files, in the order of `wanted`.

    Raises:
        InputError: a model or what a measurement needs cannot be loaded, or no node can hold a worker.
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
    """Whether `measure_all` has something to do."""
    return not all(_target(folder, model, measure).exists() for model, measure in wanted)


def embed_rows(rows: Path, config: EmbedConfig, folder: Path, connect: Callable[[], Cluster], progress: Progress) -> np.ndarray:
    """Vectors of rows, (n, d) float16 in their order, by the encoder of a run; kept in the folder.

    Args:
        rows: Parquet (row_id, messages, prompt, completion).
        config: of the run's encoder.
        folder, connect, progress: as of `measure_all`.

    Raises:
        InputError: the encoder cannot be loaded.
        JobError: the cluster gave it no place, or its server's spending limit is reached.
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
    """What shares a loaded base model together, cut into as many groups as find a place at once."""
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
    # A process that stays would keep the model, and a GPU's memory.
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
            f"{SECTION}: not done after {config.time_limit_s:g} s for each measurement; what is finished is kept; raise "
            "time_limit_s, or ask for less (--limit)"
        )


def _cpus(config: EvaluateConfig, cluster: Cluster, groups: int) -> float:
    """CPUs of a task: what the configuration says, else this machine's cores shared among those that run at once."""
    if "workers" in config.model_fields_set or not cluster.local or cluster.gpus:
        return config.workers.cpus
    return float(max(1, cluster.cpus // min(groups, cluster.cpus)))
