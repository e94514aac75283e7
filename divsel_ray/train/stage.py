"""One round's fine-tuning under Ray Train."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from divsel_ray.config import TrainConfig
from divsel_ray.errors import JobError
from divsel_ray.models.references import resolve_model
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import atomic_path
from divsel_ray.train.finetune import Conversation, finetune


def adapter_folder(folder: Path) -> Path:
    """Where `train_round` leaves the adapter."""
    return folder / "training" / "adapter"


@dataclass(frozen=True)
class Round:
    """What one round trains on.

    Attributes:
        rows: Parquet (row_id, messages) of the rows selected so far.
        held_out: likewise, rows whose loss is measured.
        seed: of the adapters and the order of rows.
        base_loss: the untuned model's loss on the held-out rows, where an earlier round measured it.
    """

    rows: Path
    held_out: Path
    seed: int
    base_loss: float | None = None


def train_round(round_: Round, config: TrainConfig, folder: Path, cluster: Cluster, progress: Progress) -> dict[str, Any]:
    """Fine-tune on a round's rows; leave `training/adapter` and `training/losses.jsonl`.

    An interrupted round is done again from its start: the same seed and rows give the same adapter.

    Returns:
        What `finetune` reports.

    Raises:
        JobError: the training failed; says why.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    if cluster.local:
        # No node of this machine is ever taken away; the watcher is one more process to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    attempt, state = f"attempt-{uuid.uuid4().hex[:12]}", folder / ".state"
    with atomic_path(folder / "training") as output:
        output.mkdir()
        gpus = cluster.gpus_per_worker(config.workers)
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"round": round_, "config": config, "folder": str(output)},
            scaling_config=ScalingConfig(
                num_workers=config.workers.count or 1,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": config.workers.cpus, **({"GPU": gpus} if gpus else {})},
            ),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(name=attempt, storage_path=str(state), failure_config=FailureConfig(max_failures=0)),
        )
        facts = _fit(trainer, output / "losses.jsonl", progress)
    shutil.rmtree(state, ignore_errors=True)
    return facts


def _fit(trainer: Any, losses: Path, progress: Progress) -> dict[str, Any]:
    from ray.train import TrainingFailedError

    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(losses, progress, stop), daemon=True)
    watcher.start()
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise JobError(f"training failed: {_cause(error)}") from error
    finally:
        stop.set()
        watcher.join()
    return dict(result.return_value)


def _cause(error: BaseException) -> str:
    """The line that says why, out of the tracebacks Ray wraps it in."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error" in line and ": " in line]
    return causes[-1] if causes else lines[-1] if lines else type(error).__name__


def _watch(losses: Path, progress: Progress, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        lines = losses.read_text(encoding="utf-8").splitlines() if losses.exists() else []
        if lines:
            last = json.loads(lines[-1])
            progress.advance(last["step"], last["steps"], "steps")


def _train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    from ray.train.huggingface.transformers import prepare_trainer

    config: TrainConfig = settings["config"]
    round_: Round = settings["round"]
    return finetune(
        resolve_model(config.model),
        _conversations(round_.rows),
        _conversations(round_.held_out),
        config,
        round_.seed,
        Path(settings["folder"]),
        round_.base_loss,
        prepare_trainer,
    )


def _conversations(file: Path) -> list[Conversation]:
    rows = pq.read_table(file, columns=["row_id", "messages"]).sort_by("row_id").to_pylist()
    return [Conversation(row["row_id"], row["messages"]) for row in rows]
