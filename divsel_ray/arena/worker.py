"""Persistent processes that train one cell after another and measure the results."""

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
"""File of a cell with row_id, nats and tokens."""


@dataclass(frozen=True)
class Measurement:
    """How losses are measured.

    Attributes:
        rows: Parquet file (row_id, messages) of the evaluation rows.
        batch_tokens: padded tokens per batch.
        chat_template: Jinja template that replaces the model's own, as text.
    """

    rows: str
    batch_tokens: int
    chat_template: str | None


class ArenaWorker:
    """A process with the resources of one training worker. The untuned model stays loaded after its first use."""

    def __init__(self, config: TrainConfig, measurement: Measurement) -> None:
        self._config, self._measurement = config, measurement
        self._meter: LossMeter | None = None

    def ready(self) -> bool:
        """Return once the actor has its resources."""
        return True

    def train(self, round_: Round, config: TrainConfig, folder: str) -> dict[str, Any]:
        """Run a training in a stage's folder."""
        try:
            return train_here(round_, config, Path(folder))
        finally:
            _release()

    def measure(self, trained: str | None, target: str) -> None:
        """Write the losses under the untuned model (None) or a trained one, unless the file exists."""
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
    """Free the memory of a training, including GPU memory: the next process may use the same GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trains_alone(config: TrainConfig) -> bool:
    """Whether a training runs in a single process."""
    return (config.workers.count or 1) == 1 and not config.fsdp


def check_places(arena: Arena, cluster: Cluster) -> None:
    """Check that the cluster can run the trainings of `parallel` cells at a time.

    Raises:
        InputError: it cannot; the message gives the requested and the available resources.
    """
    config, parallel = arena.refine.train, arena.settings.parallel
    if parallel == 1:
        return
    if not trains_alone(config):
        raise InputError("parallel: trainings with several workers run one at a time; set parallel to 1")
    cpus, gpus = config.workers.cpus, cluster.gpus_per_worker(config.workers)
    room = cluster.count(config.workers.model_copy(update={"count": None}), parallel)
    if parallel > room:
        raise InputError(
            f"parallel {parallel}: each cell's training needs {cpus:g} CPUs and {gpus:g} GPUs, and the cluster has "
            f"{cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs: at most {room} at a time"
        )


@dataclass
class Bench:
    """As many workers as cells run at a time, each started when first needed.

    Attributes:
        config: training settings.
        measurement: settings for measuring cells.
        cluster: cluster on which the workers run.
        size: maximum number of workers.
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
        """Whether trainings run in these workers; trainings over several processes have their own."""
        return trains_alone(self.config)

    def train(self, round_: Round, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """Run a training in one of the workers.

        Raises:
            InputError, JobError: raised by the training.
        """
        with self._worker() as worker:
            return dict(answer_of(worker.train.remote(round_, config, str(folder)), "training failed"))

    def measure(self, trained: Path | None, folder: Path) -> None:
        """Measure the untuned model (None) or a trained one, and write the losses to a cell's folder.

        Raises:
            InputError, JobError: a model cannot be loaded, or measuring failed.
        """
        with self._worker() as worker:
            answer_of(worker.measure.remote(str(trained) if trained else None, str(folder / LOSSES)), "evaluation failed")

    def close(self) -> None:
        """Stop idle workers and free their resources; they are restarted when needed."""
        for worker in [self._idle.get() for _ in range(self._idle.qsize())]:
            if worker is not None:
                ray.kill(worker)
            self._idle.put(None)

    def kill(self) -> None:
        """Kill all workers, including busy ones; calls that wait for them fail."""
        for worker in self._started:
            ray.kill(worker)

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Any]:
        """Reserve a worker for the block, starting it if necessary."""
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
