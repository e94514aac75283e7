"""Fine-tuning of a causal language model on completions, with transformers' Trainer and PEFT; without Ray.

If a torch process group is initialised, this process is one of its workers, and each calls `finetune` with its own rows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from divsel_ray.config import TrainConfig
from divsel_ray.errors import JobError
from divsel_ray.models.loading import load_tokenizer
from divsel_ray.train.encoding import Conversation, Example, encode, padding_of
from divsel_ray.train.loss import check_packing
from divsel_ray.train.schedule import gather, rank, schedule

__all__ = ["REFUSED", "Conversation", "Origin", "Resumption", "finetune"]

REFUSED = "refused.jsonl"
"""File next to the trained model that lists the rows refused by the chat template, if any."""
_load_tokenizer = lru_cache(maxsize=1)(load_tokenizer)
"""Cached for the next training in this process: a vocabulary of 262k tokens takes longer to load than a small model."""


@dataclass(frozen=True)
class Origin:
    """Starting point of a training, in addition to the base model.

    Attributes:
        base_loss: the untuned model's loss on the held-out rows, if already measured.
        start: adapter or model to start from instead of the base model.
        chat_template: template that replaces the model's own.
    """

    base_loss: float | None = None
    start: Path | None = None
    chat_template: str | None = None


@dataclass(frozen=True)
class Resumption:
    """Checkpoints of a training.

    Attributes:
        scratch: this worker's own folder for saving checkpoints.
        checkpoint: folder of the checkpoint to resume from, with the files of all workers.
        hand_on: called with the folder of each checkpoint, which is removed afterwards; None for no checkpoints.
    """

    scratch: Path
    checkpoint: Path | None = None
    hand_on: Callable[[Path], None] | None = None


def trained_name(config: TrainConfig) -> str:
    """Name of the folder that `finetune` writes: an adapter in PEFT's format or a model in transformers', in safetensors."""
    return "adapter" if config.method == "lora" else "model"


def finetune(
    model_folder: str,
    rows: Sequence[Conversation],
    held_out: Sequence[Conversation],
    config: TrainConfig,
    seed: int,
    folder: Path,
    origin: Origin = Origin(),
    resumption: Resumption | None = None,
) -> dict[str, Any]:
    """Fine-tune on `rows` and save to `folder/adapter` or `folder/model`.

    A line per optimiser step is appended to `folder/losses.jsonl` during training: {"step", "steps", "loss"}. Rows that the
    chat template refuses have no loss, and a line in `folder/refused.jsonl`: {"row_id", "reason"}.

    Args:
        model_folder: base model.
        rows: this worker's training rows: its parts (see `plan`) of the rows sorted by row id.
        held_out: rows whose loss is measured before (unless it is known) and after training; the same on each worker.
        config: hyper-parameters.
        seed: seed of the adapters' initial values and of the order of rows.
        folder: output folder of the result and the losses.
        origin: starting point, in addition to the base model.
        resumption: checkpoint to resume from, and where to save new ones; None for no checkpoints.

    Returns:
        {"steps", "tokens", "train_loss", "held_out_loss_base", "held_out_loss", "world_size", "resumed_from", "refused",
        "held_out_refused"}, where tokens counts every epoch, train_loss is the mean over steps, in nats per completion token,
        and the last two are numbers of rows that the chat template refuses.

    Raises:
        JobError: the loss diverged, on all workers at the same step; or the chat template refuses every row.
        InputError: the model does not separate packed rows.
    """
    from transformers import set_seed

    from divsel_ray.train.trainer import CompletionTrainer, Watch, facts_of, measure, training_arguments

    set_seed(seed)
    tokenizer = _load_tokenizer(model_folder, origin.chat_template, trust_remote_code=config.trust_remote_code)
    padding = padding_of(tokenizer)
    train, valid = (encode(tokenizer, part, config.max_tokens) for part in (rows, held_out))
    folder.mkdir(parents=True, exist_ok=True)
    refused = list_refused(rows, train, folder)
    model = load_trainable(model_folder, config, origin.start)
    if config.packing:
        check_packing(model, train, padding)
    with tempfile.TemporaryDirectory() as unused:
        resumption = resumption or Resumption(Path(unused))
        arguments = training_arguments(config, seed, resumption.scratch, saves=resumption.hand_on is not None)
        trainer = CompletionTrainer(schedule(train, config, seed), padding, arguments, model)
        watch = Watch(
            folder,
            config.max_loss,
            lambda: measure(trainer, valid, padding) if origin.base_loss is None else origin.base_loss,
            resumption.hand_on,
        )
        trainer.add_callback(watch)
        trainer.train(str(resumption.checkpoint) if resumption.checkpoint else None)
    after = measure(trainer, valid, padding)
    save_trained(trainer, tokenizer, config, folder / trained_name(config))
    return {
        **facts_of(trainer, watch),
        "tokens": sum(gather(sum(example.size for example in train if not example.refusal))) * config.epochs,
        "held_out_loss": after,
        "refused": refused,
        "held_out_refused": sum(bool(example.refusal) for example in valid),
    }


def list_refused(rows: Sequence[Conversation], examples: Sequence[Example], folder: Path) -> int:
    """Count the rows of all workers that the chat template refuses, and list them in `folder/refused.jsonl` if there are any.

    Args:
        rows: rows of this worker.
        examples: the result of `encode` for these rows.
        folder: output folder of this worker; only the first worker writes.

    Raises:
        JobError: the template refuses every row of all workers; raised on all of them.
    """
    pairs = zip(rows, examples, strict=True)
    own = [{"row_id": row.row_id, "reason": example.refusal} for row, example in pairs if example.refusal]
    refused, count = [row for part in gather(own) for row in part], sum(gather(len(rows)))
    if refused and len(refused) == count:
        raise JobError(f"refine.train: the chat template refuses all {count:,} rows, the first because: {refused[0]['reason']}")
    if refused and rank() == 0:
        (folder / REFUSED).write_text("".join(json.dumps(row) + "\n" for row in refused), encoding="utf-8")
    return len(refused)


def load_trainable(model_folder: str, config: TrainConfig, start: Path | None) -> Any:
    """Load the base model or an earlier round's result, with the trainable weights in float32."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    full = config.method == "full"
    model = AutoModelForCausalLM.from_pretrained(
        start if full and start else model_folder,
        # In bfloat16, updates at the usual learning rates would be rounded away.
        dtype=torch.float32 if full else getattr(torch, config.dtype),
        trust_remote_code=config.trust_remote_code,
    )
    if full:
        return model
    if start is not None:
        return PeftModel.from_pretrained(model, start, is_trainable=True)
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def save_trained(trainer: Any, tokenizer: Any, config: TrainConfig, folder: Path) -> None:
    """Save the trained weights in world-readable safetensors; all workers take part, and the first one writes."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model, dtype = trainer.model, getattr(torch, config.dtype)
    state: Any = None
    if config.fsdp:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=config.method == "lora")
        state = get_model_state_dict(model, options=options)
    if not trainer.is_world_process_zero():
        return
    if config.method == "full":
        tokenizer.save_pretrained(folder)
        if state is None:
            model.to(dtype)
        else:
            state = {name: value.to(dtype) for name, value in state.items()}
    model.save_pretrained(folder, state_dict=state)
    if config.method == "full":
        # A sharded model does not know the data type in which its weights were saved.
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**settings, "dtype": config.dtype}, indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)
