"""One round's fine-tuning under Ray Train."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from divsel_ray.config import TrainConfig
from divsel_ray.errors import InputError, JobError, last_line
from divsel_ray.models.references import absolute_model, resolve_model
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster, await_ready
from divsel_ray.store import atomic_path, read_json, write_json
from divsel_ray.train.finetune import REFUSED, Conversation, Origin, Resumption, finetune, trained_name
from divsel_ray.train.plan import part_bounds, parts_of

SECTION = "refine.train"
_FACTS = "facts.json"
_ERRORS = {error.__name__: error for error in (InputError, JobError)}


def trained_folder(folder: Path, config: TrainConfig) -> Path:
    """The folder in which `train_round` leaves the adapter or the model."""
    return folder / "training" / trained_name(config)


@dataclass(frozen=True)
class Round:
    """The training data of one round.

    Attributes:
        rows: Parquet file (row_id, messages) of the rows selected so far.
        held_out: Parquet file (row_id, messages) of the rows whose loss is measured.
        seed: seed of the adapters and of the order of rows.
        origin: starting point of the training, in addition to the base model.
        only_new: Parquet file (row_id, new) of the rows, to train on new rows only; None trains on all.
    """

    rows: Path
    held_out: Path
    seed: int
    origin: Origin = field(default_factory=Origin)
    only_new: Path | None = None


def train_round(round_: Round, config: TrainConfig, folder: Path, cluster: Cluster, progress: Progress) -> dict[str, Any]:
    """Fine-tune on a round's rows; writes `training/adapter` or `training/model`, and `training/losses.jsonl`.

    If a worker is killed, or the driver is killed and the same command is run again, training resumes from the last
    checkpoint, which is kept in the folder's `.state` until the training is done. The folder must belong to this training alone.

    Rows that the chat template refuses are not trained on: a note says so, and `training/refused.jsonl` lists them.

    Returns:
        The result of `finetune`, and "elastic": whether it may have run with fewer workers than configured.

    Raises:
        JobError: the training failed or could not be scheduled in time; says why.
        InputError: the model cannot be used.
    """
    output, state = folder / "training", folder / ".state"
    if not output.exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _drop_torn_snapshot(state, folder.name)
        _await_places(config, cluster)
        with atomic_path(output) as unfinished:
            unfinished.mkdir()
            trainer = _trainer(round_, config, folder.name, (state, unfinished), cluster)
            facts = _fit(trainer, unfinished / "losses.jsonl", progress)
            write_json(unfinished / _FACTS, {**facts, "elastic": _fewest(config) < _most(config)})
        if facts["refused"]:
            refused = f"{facts['refused']:,} rows are not trained on because the chat template refuses them"
            progress.note(f"{SECTION}: {refused}; see {output / REFUSED} for the reasons")
    shutil.rmtree(state, ignore_errors=True)
    return dict(read_json(output / _FACTS))


def train_here(round_: Round, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Like `train_round` with one worker, but in this process and without checkpoints: for many short trainings in sequence.

    Raises:
        JobError, InputError: as `train_round`.
    """
    output = folder / "training"
    if not output.exists():
        rows = _conversations(_rows(round_))
        held_out = _conversations(pq.read_table(round_.held_out, columns=["row_id", "messages"]))
        with atomic_path(output) as unfinished:
            unfinished.mkdir()
            facts = finetune(resolve_model(config.model), rows, held_out, config, round_.seed, unfinished, round_.origin)
            write_json(unfinished / _FACTS, {**facts, "elastic": False})
    return dict(read_json(output / _FACTS))


def _most(config: TrainConfig) -> int:
    return config.workers.count or 1


def _fewest(config: TrainConfig) -> int:
    return config.min_workers or _most(config)


def _trainer(round_: Round, config: TrainConfig, name: str, folders: tuple[Path, Path], cluster: Cluster) -> Any:
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    _set_environment(cluster)
    most, fewest, gpus = _most(config), _fewest(config), cluster.gpus_per_worker(config.workers)
    state, output = folders
    # Ray Train runs its workers in another working directory.
    config = config.model_copy(update={"model": absolute_model(config.model)})
    return TorchTrainer(
        _train_worker,
        train_loop_config={"round": round_, "config": config, "state": str(state), "output": str(output)},
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": config.workers.cpus, **({"GPU": gpus} if gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        datasets=_parts(round_, most),
        # Every worker reads its own parts whole, so no task needs a CPU besides the workers'.
        dataset_config=DataConfig(datasets_to_split=[]),
        run_config=RunConfig(
            # The same command finds its checkpoints by the folder's name, the stage's key, which no other job shares.
            name=name,
            storage_path=str(state / "ray"),
            failure_config=FailureConfig(max_failures=config.max_failures, controller_failure_limit=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def _set_environment(cluster: Cluster) -> None:
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(cluster.placement_timeout_s)
    if cluster.local:
        # The local machine is never preempted, and the watcher is one more process to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


def _parts(round_: Round, parts: int) -> dict[str, Any]:
    """The rows by row id, in one dataset per part (see `plan`)."""
    rows = _rows(round_)
    bounds = part_bounds(len(rows), parts)
    return {_part(part): ray.data.from_arrow(rows[bounds[part] : bounds[part + 1]]) for part in range(parts)}


def _rows(round_: Round) -> pa.Table:
    """The rows a round trains on (row_id, messages), by row id."""
    rows = pq.read_table(round_.rows, columns=["row_id", "messages"])
    if round_.only_new is not None:
        new = pq.read_table(round_.only_new, columns=["row_id"], filters=[("new", "=", True)])
        rows = rows.filter(pc.is_in(rows["row_id"], new["row_id"].combine_chunks()))
    if not len(rows):
        raise JobError(f"{SECTION}: this round has no rows to train on")
    return rows.sort_by("row_id")


def _part(part: int) -> str:
    return f"part-{part}"


def _await_places(config: TrainConfig, cluster: Cluster) -> None:
    """Wait until the workers can be scheduled; Ray Train itself would retry without saying what it waits for.

    Raises:
        JobError: they could not be scheduled in time.
    """
    bundle = {"CPU": config.workers.cpus, "GPU": cluster.gpus_per_worker(config.workers)}
    bundle = {unit: amount for unit, amount in bundle.items() if amount}
    places = [ray.util.placement_group([bundle]) for _ in range(_fewest(config))]
    try:
        await_ready([place.ready() for place in places], SECTION, config.workers, cluster.placement_timeout_s)
    finally:
        for place in places:
            ray.util.remove_placement_group(place)


def _drop_torn_snapshot(state: Path, name: str) -> None:
    """Start over if the process was killed while Ray Train was writing its list of checkpoints."""
    file = state / "ray" / name / "checkpoint_manager_snapshot.json"
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except json.JSONDecodeError:
        shutil.rmtree(state / "ray")


def _fit(trainer: Any, losses: Path, progress: Progress) -> dict[str, Any]:
    from ray.train import TrainingFailedError

    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(losses, progress, stop), daemon=True)
    watcher.start()
    try:
        answer = dict(trainer.fit().return_value)
    except TrainingFailedError as error:
        raise JobError(f"refine.train: training failed: {_cause(error)}") from error
    finally:
        stop.set()
        watcher.join()
    if "failed" in answer:
        raise _ERRORS[answer["kind"]](answer["failed"])
    return answer


def _cause(error: BaseException) -> str:
    """The line with the cause, taken from the tracebacks that Ray wraps around it."""
    causes = [line.strip() for line in str(error).splitlines() if "Error" in line and ": " in line]
    return causes[-1] if causes else last_line(error)


def _watch(losses: Path, progress: Progress, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        lines = losses.read_text(encoding="utf-8").splitlines() if losses.exists() else []
        if lines and lines[-1].endswith("}"):
            last = json.loads(lines[-1])
            progress.advance(last["step"], last["steps"], "steps")


def _train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train; return failures that would only repeat, because Ray Train retries exceptions."""
    round_, config = settings["round"], settings["config"]
    try:
        return _train(round_, config, Path(settings["state"]), Path(settings["output"]))
    except (InputError, JobError) as error:
        return {"failed": str(error), "kind": type(error).__name__}


def _train(round_: Round, config: TrainConfig, state: Path, output: Path) -> dict[str, Any]:
    from ray.train import Checkpoint, get_checkpoint, get_context, report

    worker, workers = get_context().get_world_rank(), get_context().get_world_size()
    rows = [row for part in parts_of(worker, workers, _most(config)) for row in _held(part)]
    held_out = _conversations(pq.read_table(round_.held_out, columns=["row_id", "messages"]))
    scratch, checkpoint = state / f"worker-{worker}", get_checkpoint()
    shutil.rmtree(scratch, ignore_errors=True)

    def train(resume: str | None) -> dict[str, Any]:
        """Train from a checkpoint's folder, or from the beginning."""
        return finetune(
            resolve_model(config.model),
            rows,
            held_out,
            config,
            round_.seed,
            output,
            round_.origin,
            Resumption(
                scratch, Path(resume) if resume else None, lambda saved: report({}, checkpoint=Checkpoint.from_directory(saved))
            ),
        )

    if checkpoint is None:
        return train(None)
    with checkpoint.as_directory() as resume:
        return train(resume)


def _held(part: int) -> list[Conversation]:
    from ray.train import get_dataset_shard

    batches = list(get_dataset_shard(_part(part)).iter_batches(batch_size=None, batch_format="pyarrow"))
    return _conversations(pa.concat_tables(batches)) if batches else []


def _conversations(table: pa.Table) -> list[Conversation]:
    return [Conversation(row["row_id"], row["messages"]) for row in table.sort_by("row_id").to_pylist()]
