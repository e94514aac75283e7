"""transformers' Trainer with the loss on completions, the batches of `plan`, and FSDP on any device."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, reduce
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from divsel_ray.config import TrainConfig
from divsel_ray.errors import JobError
from divsel_ray.train.encoding import Example, collate
from divsel_ray.train.loss import completion_loss, mean_loss
from divsel_ray.train.schedule import Schedule

_BASE_LOSS = "held_out_loss_base"


class CompletionTrainer(Trainer):
    """Uses the mean loss over all completion tokens of an optimiser step, across workers and batches."""

    loss_is_scaled_for_ga = True

    def __init__(self, schedule: Schedule, padding: int, arguments: TrainingArguments, model: Any) -> None:
        self._batches = schedule.batches
        arguments.gradient_accumulation_steps = schedule.batches_per_step
        self._steps, self._warmup = schedule.steps, arguments.warmup_steps
        # Text gives no gradient to an image encoder, for example.
        arguments.ddp_find_unused_parameters = model.config.get_text_config() is not model.config
        super().__init__(model, arguments, lambda batch: collate(batch, padding), schedule.sequences)
        self.remove_callback(PrinterCallback)

    def create_accelerator_and_postprocess(self) -> None:
        """Make Accelerate shard the model on CPUs as on GPUs; by default it keeps a whole copy in each process."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Use `learning_rate_factor` instead of transformers' own schedules, whose first step has a learning rate of zero."""
        factor = partial(learning_rate_factor, steps=self._steps, warmup_ratio=self._warmup)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The planned batches of this worker for all epochs, which Accelerate does not have to divide."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of an optimiser step, and the number of completion tokens in it over all workers."""
        batches = list(islice(epoch_iterator, num_batches))
        tokens = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        return batches, reduce(torch.tensor(float(tokens), device=device), "sum").clamp(min=1)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """This worker's share of the mean loss, multiplied by the number of workers because gradients are averaged over them."""
        loss, _ = completion_loss(model, inputs)
        return loss * self.args.world_size / num_items_in_batch


@dataclass
class Watch(TrainerCallback):
    """Callbacks between steps: write losses, end the training if it diverges, pass on checkpoints.

    Attributes:
        folder: folder of `losses.jsonl`.
        limit: a mean loss above it, or not a number, counts as divergence.
        measure_base: returns the untuned model's loss on the held-out rows.
        hand_on: called with the folder of each checkpoint, which is removed afterwards.
    """

    folder: Path
    limit: float
    measure_base: Callable[[], float]
    hand_on: Callable[[Path], None] | None = None
    resumed_from: int = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Rewrite the losses up to the checkpoint: a killed attempt may have written more."""
        self.resumed_from = state.global_step
        if not state.global_step:
            state.log_history.append({_BASE_LOSS: self.measure_base(), "step": 0})
        if state.is_world_process_zero:
            (self.folder / "losses.jsonl").write_text("".join(map(_line, losses(state))), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Record the loss of a step, which is the same on all workers.

        Raises:
            JobError: the loss diverged.
        """
        if "loss" not in (logs or {}):
            return
        entry = losses(state)[-1]
        if not math.isfinite(entry["loss"]) or entry["loss"] > self.limit:
            raise JobError(
                f"refine.train: training diverged at step {entry['step']}: loss {entry['loss']:g} (limit {self.limit:g}); "
                "lower refine.train.learning_rate"
            )
        if state.is_world_process_zero:
            with (self.folder / "losses.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(_line(entry))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Skip the checkpoint at the end, which would be removed at once."""
        if state.global_step % args.save_steps:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Pass on this worker's checkpoint."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.hand_on is not None:
            self.hand_on(checkpoint)
        shutil.rmtree(checkpoint, ignore_errors=True)


def learning_rate_factor(step: int, *, steps: int, warmup_ratio: float) -> float:
    """Learning rate of an optimiser step relative to its peak: linear warm-up, then half a cosine; above zero in every step.

    A training may consist of a few steps, or of a single one, and each of them has to count.

    Args:
        step: 0 for the first step.
        steps: total number of steps.
        warmup_ratio: share of the steps used for warm-up, rounded down.

    Example:
        >>> [round(learning_rate_factor(step, steps=4, warmup_ratio=0.25), 3) for step in range(4)]
        [0.5, 1.0, 0.75, 0.25]
    """
    warmup = math.floor(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2


def losses(state: Any) -> list[dict[str, Any]]:
    """The steps so far: {"step", "steps", "loss"}."""
    steps = [entry for entry in state.log_history if "loss" in entry]
    return [{"step": entry["step"], "steps": state.max_steps, "loss": float(entry["loss"])} for entry in steps]


def facts_of(trainer: CompletionTrainer, watch: Watch) -> dict[str, Any]:
    """Facts of a finished training: {"steps", "train_loss", "held_out_loss_base", "world_size", "resumed_from"}."""
    state = trainer.state
    steps = losses(state)
    return {
        "steps": state.global_step,
        "train_loss": sum(step["loss"] for step in steps) / len(steps),
        "held_out_loss_base": float(next(entry[_BASE_LOSS] for entry in state.log_history if _BASE_LOSS in entry)),
        "world_size": trainer.args.world_size,
        "resumed_from": watch.resumed_from,
    }


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def measure(trainer: CompletionTrainer, examples: list[Example], padding: int) -> float:
    """Mean loss of the trained model, in the precision of the training."""
    with trainer.accelerator.autocast():
        return mean_loss(trainer.model, examples, padding, trainer.args.per_device_train_batch_size)


def training_arguments(config: TrainConfig, seed: int, scratch: Path, *, saves: bool) -> TrainingArguments:
    """Settings of the Trainer; `CompletionTrainer` derives those that depend on the schedule.

    Args:
        config: hyper-parameters.
        seed: seed of everything random.
        scratch: folder to which this worker's checkpoints are written first.
        saves: whether to save checkpoints.
    """
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=1,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,
        bf16=config.dtype == "bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        fsdp=config.fsdp or None,
        # Every worker writes its own share of a checkpoint.
        fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"} if config.fsdp else None,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        logging_steps=1,
        # The filter would hide a loss that is not a number.
        logging_nan_inf_filter=False,
        save_strategy="steps" if saves else "no",
        save_steps=config.checkpoint_steps,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
