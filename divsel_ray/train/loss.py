"""The loss: cross-entropy on completion tokens, summed, so that batches of any size add up to the same mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from divsel_ray.errors import InputError
from divsel_ray.train.encoding import Example, collate

_TRIED_TOKENS = 24
"""Tokens of a prompt, and of a completion, used to test packing."""
_EXACT, _ROUNDED = 1e-5, 0.05
"""Relative tolerances of a loss: when the same computation is repeated, and with other shapes in bfloat16."""


def completion_loss(model: Any, batch: dict[str, Any]) -> tuple[Any, int]:
    """Summed cross-entropy (nats) over the completion tokens of a `collate`d batch, and their number."""
    import torch

    labels = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    logits = model(**inputs, use_cache=False, logits_to_keep=batch["keep"]).logits.float()
    loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum")
    return loss, int((labels != -100).sum())


def check_packing(model: Any, examples: Sequence[Example], padding: int) -> None:
    """Check that rows packed into one sequence do not attend to each other, which not every architecture ensures.

    The loss of a row must not change with the row before it, and must be near that of the row alone. Short pieces of two
    examples are used, on the model's device.

    Raises:
        InputError: the loss changes.
    """
    known = [example for example in examples if not example.refusal]
    if len(known) < 2:
        return
    before, row = (Example(one.prompt[-_TRIED_TOKENS:], one.completion[:_TRIED_TOKENS]) for one in known[:2])
    vocabulary, ids = model.config.get_text_config().vocab_size, [*before.prompt, *before.completion]
    after_it, after_others = (
        _loss_of(model, [Example([(token + shift) % vocabulary for token in ids], []), row], padding) for shift in (0, 1)
    )
    alone = _loss_of(model, [row], padding)
    if abs(after_it - after_others) > _EXACT * alone or abs(after_it - alone) > _ROUNDED * alone:
        raise InputError(
            f"refine.train.packing: {type(model).__name__} of transformers does not separate packed rows (a row's loss is "
            f"{alone:.4f} alone, {after_it:.4f} and {after_others:.4f} after two other rows); set packing: false"
        )


def _loss_of(model: Any, sequence: Sequence[Example], padding: int) -> float:
    """Summed loss of the completions in one sequence."""
    import torch

    model.eval()
    with torch.no_grad():
        batch = {name: value.to(model.device) for name, value in collate([sequence], padding).items()}
        return float(completion_loss(model, batch)[0])


def mean_loss(model: Any, examples: Sequence[Example], padding: int, batch_size: int) -> float:
    """Mean cross-entropy per completion token, in nats; NaN without examples."""
    import torch

    ordered = [[example] for example in sorted(examples, key=lambda example: example.size)]
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(ordered), batch_size):
            batch = collate(ordered[start : start + batch_size], padding)
            loss, count = completion_loss(model, {name: value.to(model.device) for name, value in batch.items()})
            total, tokens = total + float(loss), tokens + count
    return total / tokens if tokens else math.nan
