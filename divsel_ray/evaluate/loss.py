"""Losses of given completions, row by row, rendered and cut exactly as in training (`train/encoding.py`).

A row's loss is the sum over its completion's tokens of -log p(token | prompt, tokens before), in nats; the end-of-sequence
token counts because it is trained on. The mean loss of rows is the sum of their nats over the sum of their tokens; a row that
the chat template refuses has no tokens and does not contribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from divsel_ray.errors import InputError
from divsel_ray.evaluate.loading import LoadedModel
from divsel_ray.models.batching import token_batches
from divsel_ray.models.loading import positions_of
from divsel_ray.train.encoding import Conversation, Example, collate, encode, padding_of

__all__ = ["Conversation", "LossMeter", "losses_of"]


class LossMeter:
    """Measures losses with one base model in this process and one adapter after another.

    Args:
        model, chat_template, dtype, trust_remote_code: see `LoadedModel`.
        max_tokens: maximum length of prompt and completion together, like `refine.train.max_tokens`.
        batch_tokens: approximate number of padded tokens per batch.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        *,
        chat_template: str | None,
        max_tokens: int,
        batch_tokens: int,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ) -> None:
        self._loaded = LoadedModel(model, dtype, chat_template, trust_remote_code)
        self._max_tokens, self._batch_tokens = max_tokens, batch_tokens

    def measure(self, adapter: Path | None, rows: Sequence[Conversation]) -> tuple[np.ndarray, np.ndarray]:
        """Measure the loss of each row's completion.

        Args:
            adapter: folder of a LoRA adapter to apply to the model, or None.
            rows: n conversations; the last message is the completion.

        Returns:
            (n,) float64 sums of negative log-likelihood in nats, and (n,) int64 numbers of tokens summed over.

        Raises:
            InputError: the adapter does not fit this model, or the chat template refuses a row: here every row needs a loss.
        """
        with self._loaded.using(adapter) as model:
            nats, tokens = losses_of(model, self._loaded.tokenizer, rows, self._max_tokens, self._batch_tokens)
        refused = [row.row_id for row, count in zip(rows, tokens, strict=True) if not count]
        if refused:
            raise InputError(
                f"row {refused[0]}: its loss cannot be measured because the chat template refuses it ({len(refused):,} of "
                f"{len(rows):,} rows); remove such rows from the data, or set another chat_template"
            )
        return nats, tokens


def losses_of(
    model: Any, tokenizer: Any, rows: Sequence[Conversation], max_tokens: int, batch_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the loss of each row's completion under a loaded model; arguments and result as for `LossMeter`.

    A row that the chat template refuses has no tokens.

    Raises:
        InputError: the chat template refuses every row.
    """
    longest = min(max_tokens, positions_of(model.config) or max_tokens)
    padding, examples = padding_of(tokenizer), encode(tokenizer, rows, longest)
    if examples and all(example.refusal for example in examples):
        raise InputError(f"the chat template refuses all {len(rows):,} rows, the first because: {examples[0].refusal}")
    nats, tokens = np.zeros(len(rows)), np.array([len(example.completion) for example in examples], dtype=np.int64)
    for batch in token_batches([example.size for example in examples], [row.row_id for row in rows], batch_tokens):
        nats[batch] = _batch_losses(model, [examples[index] for index in batch], padding)
    return nats, tokens


def _batch_losses(model: Any, examples: Sequence[Example], padding: int) -> np.ndarray:
    """Summed loss of each example, (n,) float64."""
    import torch

    batch = {name: value.to(model.device) for name, value in collate([[example] for example in examples], padding).items()}
    labels, keep = batch.pop("labels"), batch.pop("keep")
    with torch.inference_mode():
        logits = model(**batch, use_cache=False, logits_to_keep=keep).logits
        # Row by row: with a vocabulary of 262k, each copy of the logits takes 1 MiB per position.
        losses = [
            torch.nn.functional.cross_entropy(row.float(), of_row, reduction="none").double().sum()
            for row, of_row in zip(logits, labels, strict=True)
        ]
    return np.array([float(loss) for loss in losses])
