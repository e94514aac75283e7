"""The loss: cross-entropy on completion tokens, summed, so that batches of any size add up to the same mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from divsel_ray.train.encoding import Example, collate


def completion_loss(model: Any, batch: dict[str, Any]) -> tuple[Any, int]:
    """Summed cross-entropy (nats) over the completion tokens of a `collate`d batch, and how many there are."""
    import torch

    labels = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    logits = model(**inputs, use_cache=False, logits_to_keep=batch["keep"]).logits.float()
    loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum")
    return loss, int((labels != -100).sum())


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
