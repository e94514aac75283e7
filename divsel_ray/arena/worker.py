"""Processes that stay: they train one cell after another and measure what came out, and nothing is started twice."""

from __future__ import annotations

import contextlib
import gc
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from divsel_ray.actors import answer_of, start_actor
from divsel_ray.config import TrainConfig
from divsel_ray.config.arena import Arena
from divsel_ray.errors import InputError
from divsel_ray.evaluate.loss import Conversation, LossMeter
from divsel_ray.evaluate.measures import write_losses
from divsel_ray.resources import Cluster, await_ready
from divsel_ray.train.stage import SECTION, Round, train_here

LOSSES = "losses.parquet"
"""Of a cell: row_id, nats, tokens."""


@dataclass(frozen=True)
class Measurement:
    """How losses are measured.

    Attributes:
        rows: Parquet (row_id, messages) of the evaluation rows.
        batch_tokens: padded tokens per batch.
        chat_template: text of a Jinja template in place of the model's own.
    """

    rows: str
    batch_tokens: int
    chat_template: str | None


class ArenaWorker:
    """One process with a training worker's place. The untuned model, once measured with, stays loaded."""

    def __init__(self, config: TrainConfig, measurement: Measurement) -> None:
        self._config, self._measurement = config, measurement
        self._meter: LossMeter | None = None

    def ready(self) -> bool:
        """Answers once the actor has its place."""
        return True

    def train(self, round_: Round, config: TrainConfig, folder: str) -> dict[str, Any]:
        """Do a training in a stage's folder."""
        try:
            return train_here(round_, config, Path(folder))
        finally:
            _release()

    def measure(self, trained: str | None, target: str) -> None:
        """Write the losses under the untuned model, or under what a training left. Done once."""
        if not Path(target).exists():
            write_losses(Path(self._measurement.rows), lambda rows: self._losses(trained, rows), Path(target))

    def _losses(self, trained: str | None, rows: list[Conversation]) -> tuple[np.ndarray, np.ndarray]:
        if trained is not None and self._config.method == "full":
            try:
                return self._load(trained).measure(None, rows)
            finally:
                _release()
        if self._meter is None:
            self._meter = self._load(self._config.model)
        return self._meter.measure(Path(trained) if trained else None, rows)

    def _load(self, model: str) -> LossMeter:
        config, measurement = self._config, self._measurement
        return LossMeter(
            model,
            chat_template=measurement.chat_template,
            max_tokens=config.max_tokens,
            batch_tokens=measurement.batch_tokens,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
        )


def _release() -> None:
    """Free what a training held, the GPU's memory too: the next process may have its place on the same one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trains_alone(config: TrainConfig) -> bool:
    """Whether one process does a training."""
    return (config.workers.count or 1) == 1 and not config.fsdp


def check_places(arena: Arena, cluster: Cluster) -> None:
    """Refuse more cells at a time than there are places for their trainings.

    Raises:
        InputError: says what is asked for and what there is.
    """
    config, parallel = arena.refine.train, arena.settings.parallel
    if parallel == 1:
        return
    if not trains_alone(config):
        raise InputError("parallel: trainings of several workers run one at a time; set parallel to 1")
    cpus, gpus = config.workers.cpus, cluster.gpus_per_worker(config.workers)
    room = cluster.count(config.workers.model_copy(update={"count": None}), parallel)
    if parallel > room:
        raise InputError(
            f"parallel {parallel}: each cell's training asks for {cpus:g} CPUs and {gpus:g} GPUs, and the cluster has "
            f"{cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs: at most {room} at a time"
        )


@dataclass
class Bench:
    """As many workers as cells run at a time, started when first needed.

    Attributes:
        config: the recipe.
        measurement: of the cells.
        cluster: where they run.
        size: workers at most.
    """

    config: TrainConfig
    measurement: Measurement
    cluster: Cluster
    size: int
    _idle: queue.LifoQueue[Any] = field(default_factory=queue.LifoQueue)
    _started: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        for _ in range(self.size):
            self._idle.put(None)

    @property
    def trains_here(self) -> bool:
        """Whether trainings run in these workers; those spread over several processes have their own."""
        return trains_alone(self.config)

    def train(self, round_: Round, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """Do a training in one of the workers.

        Raises:
            InputError, JobError: as the training.
        """
        with self._worker() as worker:
            return dict(answer_of(worker.train.remote(round_, config, str(folder)), "training failed"))

    def measure(self, trained: Path | None, folder: Path) -> None:
        """Measure the untuned model (None), or what a training left, into a cell's folder.

        Raises:
            InputError, JobError: a model cannot be loaded, or measuring failed.
        """
        with self._worker() as worker:
            answer_of(worker.measure.remote(str(trained) if trained else None, str(folder / LOSSES)), "evaluation failed")

    def close(self) -> None:
        """End the workers that are idle and free what they hold; they start again when needed."""
        for worker in [self._idle.get() for _ in range(self._idle.qsize())]:
            if worker is not None:
                ray.kill(worker)
            self._idle.put(None)

    def kill(self) -> None:
        """End all workers, those at work too: whoever waits for one fails."""
        for worker in self._started:
            ray.kill(worker)

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Any]:
        """A worker for the block, started if none is there."""
        worker = self._idle.get()
        try:
            if worker is None:
                workers = self.config.workers
                arguments = [self.config, self.measurement]
                worker = start_actor(ArenaWorker, arguments, workers, self.cluster.gpus_per_worker(workers))
                self._started.append(worker)
                await_ready([worker.ready.remote()], SECTION, workers, self.cluster.placement_timeout_s)
            yield worker
        finally:
            self._idle.put(worker)
