"""LoRA fine-tuning of a causal language model on completions, with transformers' Trainer and PEFT.

Prompts are padded on the left and completions on the right, so that all completions of a batch begin at the same
position: the model is asked for logits only from there on. With Gemma's 262k-token vocabulary the logits of prompt
positions cost more than the rest of the network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divsel_ray.config import TrainConfig
from divsel_ray.errors import JobError
from divsel_ray.models.text import Message, encode_completion, encode_prompt


@dataclass(frozen=True)
class Example:
    """Token ids of one row: the prompt, and the completion that the loss is taken on."""

    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class Conversation:
    """One training row: messages, the last of which is the completion."""

    row_id: str
    messages: Sequence[Message]


def encode(tokenizer: Any, rows: Sequence[Conversation], max_tokens: int) -> list[Example]:
    """Tokenise rows to at most `max_tokens`; the completion may use what a prompt of up to half of them leaves."""
    examples = []
    for row in rows:
        prompt = encode_prompt(tokenizer, row.messages[:-1], max_tokens)
        completion = encode_completion(tokenizer, row.messages[-1]["content"], max_tokens)
        room = max(max_tokens - len(completion), max_tokens // 2)
        prompt = prompt if len(prompt) <= room else encode_prompt(tokenizer, row.messages[:-1], room)
        examples.append(Example(prompt, completion[: max_tokens - len(prompt)]))
    return examples


def collate(examples: Sequence[Example], padding: int) -> dict[str, Any]:
    """Pad so that all completions begin at the same position.

    Returns:
        input_ids, attention_mask, position_ids: (rows, tokens); labels: (rows, longest completion), -100 where padded.
    """
    import torch

    left = max(len(example.prompt) for example in examples)
    right = max(len(example.completion) for example in examples)
    ids = torch.full((len(examples), left + right), padding)
    mask = torch.zeros((len(examples), left + right), dtype=torch.long)
    labels = torch.full((len(examples), right), -100)
    for row, example in enumerate(examples):
        start, end = left - len(example.prompt), left + len(example.completion)
        ids[row, start:end] = torch.tensor(example.prompt + example.completion)
        mask[row, start:end] = 1
        labels[row, : len(example.completion)] = torch.tensor(example.completion)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}


def completion_loss(model: Any, batch: dict[str, Any]) -> tuple[Any, int]:
    """Summed cross-entropy over completion tokens, and how many there are."""
    import torch

    labels = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    logits = model(**inputs, use_cache=False, logits_to_keep=labels.shape[1] + 1).logits.float()
    # The last position predicts nothing: giving it a label to ignore spares a copy of the logits without it.
    targets = torch.nn.functional.pad(labels, (0, 1), value=-100)
    loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), reduction="sum")
    return loss, int((labels != -100).sum())


def mean_loss(model: Any, examples: Sequence[Example], padding: int, batch_size: int) -> float:
    """Mean cross-entropy per completion token, in nats; NaN without examples."""
    import torch

    ordered = sorted(examples, key=lambda example: len(example.prompt) + len(example.completion))
    total, tokens = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(ordered), batch_size):
            batch = {
                name: value.to(model.device) for name, value in collate(ordered[start : start + batch_size], padding).items()
            }
            loss, count = completion_loss(model, batch)
            total, tokens = total + float(loss), tokens + count
    return total / tokens if tokens else math.nan


def finetune(
    model_folder: str,
    rows: Sequence[Conversation],
    held_out: Sequence[Conversation],
    config: TrainConfig,
    seed: int,
    folder: Path,
    base_loss: float | None = None,
    prepare: Callable[[Any], Any] = lambda trainer: trainer,
) -> dict[str, Any]:
    """Fine-tune adapters on `rows` and save them in PEFT's format (safetensors) to `folder/adapter`.

    `folder/losses.jsonl` gets a line per optimiser step while it runs: {"step", "steps", "loss"}.

    Args:
        model_folder: base model.
        rows: what to train on.
        held_out: rows whose loss is measured before (unless `base_loss` is known) and after.
        config: hyper-parameters.
        seed: of the adapters' initial values and the order of rows.
        folder: where the adapter and the losses go.
        base_loss: the untuned model's loss on `held_out`, where an earlier round measured it.
        prepare: hook that a distributed caller wraps the Trainer with.

    Returns:
        {"steps", "tokens", "train_loss", "held_out_loss_base", "held_out_loss"}.

    Raises:
        JobError: the loss diverged.
    """
    from transformers import AutoTokenizer, set_seed

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=config.trust_remote_code)
    padding = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    train, valid = (encode(tokenizer, part, config.max_tokens) for part in (rows, held_out))
    trainer, model = _trainer(model_folder, train, padding, config, seed, folder)
    before = mean_loss(model, valid, padding, config.batch_size) if base_loss is None else base_loss
    result = prepare(trainer).train()
    after = mean_loss(trainer.model, valid, padding, config.batch_size)
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder / "adapter")
        for file in (folder / "adapter").iterdir():
            file.chmod(0o644)
    return {
        "steps": trainer.state.global_step,
        "tokens": sum(len(e.prompt) + len(e.completion) for e in train) * config.epochs,
        "train_loss": result.training_loss,
        "held_out_loss_base": before,
        "held_out_loss": after,
    }


def _trainer(
    model_folder: str, examples: list[Example], padding: int, config: TrainConfig, seed: int, folder: Path
) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class CompletionTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            loss, count = completion_loss(model, inputs)
            return loss / (count if num_items_in_batch is None else num_items_in_batch)

    class LossLog(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.is_world_process_zero and "loss" in (logs or {}):
                _log_loss(folder, state, float(logs["loss"]), config.max_loss)

    base = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=getattr(torch, config.dtype), trust_remote_code=config.trust_remote_code
    )
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type="cosine",
        bf16=config.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = CompletionTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=lambda batch: collate(batch, padding),
        callbacks=[LossLog()],
    )
    trainer.remove_callback(PrinterCallback)
    model.to(arguments.device)
    return trainer, model


def _log_loss(folder: Path, state: Any, loss: float, limit: float) -> None:
    if not math.isfinite(loss) or loss > limit:
        raise JobError(
            f"training diverged at step {state.global_step}: loss {loss:g} (limit {limit:g}); lower refine.train.learning_rate"
        )
    with (folder / "losses.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": state.global_step, "steps": state.max_steps, "loss": loss}) + "\n")
