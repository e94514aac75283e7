"""A causal language model that scores but does not generate: losses of given completions, and logits after given texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from divsel_ray.errors import InputError
from divsel_ray.models.batching import pad_ids, token_batches
from divsel_ray.models.loading import load_tokenizer, loading, positions_of
from divsel_ray.models.references import resolve_model
from divsel_ray.models.text import encode_completion, encode_prompt
from divsel_ray.score.scorer import Exchange

_LOGIT_ROWS = 256
"""Positions whose logits are computed at once: each takes 1 MiB of float32 for a vocabulary of 262k."""

_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "logits_soft_cap")
"""Settings of models whose logits are more than the output of one linear layer."""


@dataclass(frozen=True)
class Text:
    """Token ids of a context and its completion, and the number of context tokens."""

    ids: list[int]
    context: int


class LanguageModel:
    """A causal language model, on the GPU if there is one (bfloat16), else on the CPU (float32).

    Args:
        role: purpose of the model, e.g. "ifd", for error messages.
        model: local folder, Hugging Face id or package:NAME.
        max_tokens: longest text in tokens; at most the number of positions that the model has.
        batch_tokens: padded tokens per batch.
        trust_remote_code: let the model's own Python code run.

    Attributes:
        tokenizer: tokenizer of the model.
        max_tokens: longest text in tokens.

    Raises:
        InputError: the model cannot be loaded, or has neither a beginning- nor an end-of-sequence token.
    """

    def __init__(self, role: str, model: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool = False) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer, self._model = _load(role, resolve_model(model), self._device, trust_remote_code)
        tokens = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        starts = [token for token in tokens if token is not None]
        if not starts:
            raise InputError(
                f"{role} model {model}: its tokenizer has no beginning- or end-of-sequence token to start a completion from"
            )
        self._start = starts[0]
        self.max_tokens = min(max_tokens, positions_of(self._model.config) or max_tokens)
        self._batch_tokens = batch_tokens

    def encode(self, exchange: Exchange) -> Text:
        """Encode the completion after its prompt; prompts are cut from the left, and the completion gets at least half.

        Only a complete completion gets the end-of-sequence token: after a cut, that token's loss would measure how unexpected
        the cut is.

        Raises:
            ValueError: the completion is empty.
        """
        prompt = encode_prompt(self.tokenizer, exchange.messages, self.max_tokens) or [self._start]
        completion = encode_completion(self.tokenizer, exchange.completion, self.max_tokens - 1)
        if exchange.cut and completion[-1:] == [self.tokenizer.eos_token_id]:
            completion = completion[:-1]
        completion = completion[: max(self.max_tokens // 2, self.max_tokens - len(prompt))]
        if not completion:
            raise ValueError("the completion is empty")
        if len(prompt) + len(completion) > self.max_tokens:
            prompt = encode_prompt(self.tokenizer, exchange.messages, self.max_tokens - len(completion))
        return Text([*prompt, *completion], len(prompt))

    def without_prompt(self, text: Text) -> Text:
        """The same completion after the start token alone."""
        return Text([self._start, *text.ids[text.context :]], 1)

    def mean_losses(self, texts: Sequence[Text], names: Sequence[str]) -> np.ndarray:
        """Mean negative log-likelihood in nats of each text's completion tokens, (n,) float64.

        Args:
            texts: n texts.
            names: (n,) unique names, which together with the lengths determine the batches.
        """
        losses = np.full(len(texts), np.nan)
        for batch in token_batches([len(text.ids) for text in texts], names, self._batch_tokens):
            losses[batch] = self._batch_losses([texts[index] for index in batch])
        return losses

    def next_logits(self, texts: Sequence[list[int]], names: Sequence[str], tokens: Sequence[int]) -> np.ndarray:
        """Logits of the given tokens right after each text, (n, len(tokens)) float64; names as for `mean_losses`."""
        logits = np.full((len(texts), len(tokens)), np.nan)
        for batch in token_batches([len(ids) for ids in texts], names, self._batch_tokens):
            logits[batch] = self._batch_logits([texts[index] for index in batch])[:, list(tokens)]
        return logits

    def _batch_losses(self, batch: list[Text]) -> np.ndarray:
        import torch

        ids, inputs = self._padded([text.ids for text in batch])
        wanted = np.zeros(ids.shape, dtype=bool)
        for row, text in enumerate(batch):
            wanted[row, text.context : len(text.ids)] = True
        rows, columns = np.nonzero(wanted)
        with torch.inference_mode():
            # The token at a position is predicted from the position before it.
            losses = [
                torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).to(self._device), reduction="none").cpu()
                for logits, targets in zip(
                    _logits_at(self._model, inputs, rows, columns - 1), _pieces(ids[rows, columns]), strict=True
                )
            ]
        total = torch.cat(losses).numpy().astype(np.float64)
        return np.bincount(rows, total, minlength=len(batch)) / np.bincount(rows, minlength=len(batch))

    def _batch_logits(self, batch: list[list[int]]) -> np.ndarray:
        import torch

        _, inputs = self._padded(batch)
        last = np.array([len(ids) - 1 for ids in batch])
        with torch.inference_mode():
            pieces = [piece.cpu() for piece in _logits_at(self._model, inputs, np.arange(len(batch)), last)]
        return np.asarray(torch.cat(pieces).numpy(), dtype=np.float64)

    def _padded(self, batch: list[list[int]]) -> tuple[np.ndarray, dict[str, Any]]:
        """Pad ids on the right, (n, longest); returns them and the model's inputs."""
        import torch

        ids, mask = pad_ids(batch, 0)
        arrays = {"input_ids": ids, "attention_mask": mask}
        return ids, {name: torch.from_numpy(values).to(self._device) for name, values in arrays.items()}


def _pieces(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + _LOGIT_ROWS] for start in range(0, len(values), _LOGIT_ROWS)]


def _logits_at(model: Any, inputs: dict[str, Any], rows: np.ndarray, columns: np.ndarray) -> Any:
    """Compute float logits only at (rows, columns), piece by piece; yields (m, vocabulary)."""
    import torch

    body, head = _parts(model)
    at = torch.from_numpy(rows), torch.from_numpy(columns)
    states = (model(**inputs).logits if body is None else body(**inputs).last_hidden_state)[at]
    for start in range(0, len(rows), _LOGIT_ROWS):
        piece = states[start : start + _LOGIT_ROWS]
        yield (piece if head is None else head(piece)).float()


def _parts(model: Any) -> tuple[Any, Any]:
    """The model without its output layer, and that layer; (None, None) if the logits are more than that layer's output."""
    body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
    config = model.config.get_text_config()
    changed = any(getattr(config, name, None) is not None for name in _LOGIT_CHANGES)
    return (None, None) if body is None or head is None or changed else (body, head)


def _load(role: str, folder: str, device: str, trust_remote_code: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    with loading(f"{role} model {folder}"):
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    return tokenizer, model.to(device).eval()
