"""Instruction-following difficulty: how little the prompt helps a language model to predict the completion.

    IFD(x, y) = PPL(y | x) / PPL(y) = exp(mean loss of y given x - mean loss of y alone)

Introduced by Li et al. 2024 ("From Quantity to Quality", arXiv 2308.12032) as a ratio of mean losses; the ratio of
perplexities computed here is that of Li et al. 2024 ("Superfiltering", arXiv 2402.00530). Above 1 the prompt does not
help at all: those papers drop such rows. Here the raw ratio is the quality and nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from divsel_ray.errors import InputError
from divsel_ray.models.batching import token_batches
from divsel_ray.models.references import resolve_model
from divsel_ray.models.text import encode_completion, encode_prompt
from divsel_ray.score.scorer import Exchange, encode_each

_LOGIT_ROWS = 256
"""Positions whose logits exist at once: a vocabulary of 262k takes 1 MiB of float32 for each."""

_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of models that do more to their logits than one linear layer."""


@dataclass(frozen=True)
class _Text:
    """A completion after its context: token ids, and how many of them are context."""

    ids: list[int]
    context: int


class InstructionFollowingDifficulty:
    """IFD under a causal language model, on the GPU if there is one (bfloat16), else on the CPU (float32).

    Args:
        model: causal language model: local folder, Hugging Face id or package:NAME.
        max_tokens: prompt and completion together; prompts are cut from the left, and the completion keeps at least
            half.
        batch_tokens: padded tokens per batch.
        trust_remote_code: let the model's own Python code run.

    Raises:
        InputError: the model cannot be loaded, or has neither a beginning- nor an end-of-sequence token.
    """

    def __init__(self, model: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool = False) -> None:
        import torch

        self.problem = ""
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer, self._model = _load(resolve_model(model), self._device, trust_remote_code)
        tokens = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        starts = [token for token in tokens if token is not None]
        if not starts:
            raise InputError(
                f"ifd model {model}: its tokenizer has no beginning- or end-of-sequence token to start a completion from"
            )
        self._start = starts[0]
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or max_tokens
        self._max_tokens = min(max_tokens, positions)
        self._batch_tokens = batch_tokens

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """IFD (n,) float64; see `Scorer`."""
        encoded, problem = encode_each(exchanges, self._encode)
        self.problem = self.problem or problem
        texts = [text for pair in encoded.values() for text in pair]
        names = [f"{exchanges[place].row_id}/{part}" for place in encoded for part in ("given", "alone")]
        losses = np.full(len(texts), np.nan)
        for batch in token_batches([len(text.ids) for text in texts], names, self._batch_tokens):
            losses[batch] = self._mean_losses([texts[index] for index in batch])
        scores = np.full(len(exchanges), np.nan)
        scores[list(encoded)] = np.exp(losses[0::2] - losses[1::2])
        return np.where(np.isfinite(scores), scores, np.nan)

    def _encode(self, exchange: Exchange) -> tuple[_Text, _Text]:
        """The completion after its prompt, and after nothing but the start token."""
        prompt = encode_prompt(self._tokenizer, exchange.messages, self._max_tokens) or [self._start]
        completion = encode_completion(self._tokenizer, exchange.completion, self._max_tokens - 1)
        completion = completion[: max(self._max_tokens // 2, self._max_tokens - len(prompt))]
        if not completion:
            raise ValueError("the completion is empty")
        if len(prompt) + len(completion) > self._max_tokens:
            prompt = encode_prompt(self._tokenizer, exchange.messages, self._max_tokens - len(completion))
        return _Text([*prompt, *completion], len(prompt)), _Text([self._start, *completion], 1)

    def _mean_losses(self, batch: list[_Text]) -> np.ndarray:
        """Mean negative log-likelihood in nats of each text's completion tokens, (n,)."""
        import torch

        longest = max(len(text.ids) for text in batch)
        ids, mask, wanted = (np.zeros((len(batch), longest), dtype=np.int64) for _ in range(3))
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = 1
            wanted[row, text.context : len(text.ids)] = 1
        rows, columns = np.nonzero(wanted)
        with torch.inference_mode():
            inputs = {
                "input_ids": torch.from_numpy(ids).to(self._device),
                "attention_mask": torch.from_numpy(mask).to(self._device),
            }
            # The token at a position is predicted from the position before it.
            losses = _losses_at(self._model, inputs, rows, columns - 1, torch.from_numpy(ids[rows, columns]).to(self._device))
        return np.bincount(rows, losses, minlength=len(batch)) / np.bincount(rows, minlength=len(batch))


def _losses_at(model: Any, inputs: dict[str, Any], rows: np.ndarray, columns: np.ndarray, targets: Any) -> np.ndarray:
    """Cross-entropy (m,) float64 of `targets` predicted at (rows, columns); logits are made only there, piece by piece."""
    import torch

    body, head = _parts(model)
    at = torch.from_numpy(rows), torch.from_numpy(columns)
    states = (model(**inputs).logits if body is None else body(**inputs).last_hidden_state)[at]
    pieces = []
    for start in range(0, len(rows), _LOGIT_ROWS):
        logits = states[start : start + _LOGIT_ROWS] if head is None else head(states[start : start + _LOGIT_ROWS])
        piece = torch.nn.functional.cross_entropy(logits.float(), targets[start : start + _LOGIT_ROWS], reduction="none")
        pieces.append(piece.cpu().numpy())
    return np.concatenate(pieces).astype(np.float64)


def _parts(model: Any) -> tuple[Any, Any]:
    """The model without its output layer, and that layer; (None, None) where logits are more than that layer's product."""
    body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
    config = model.config.get_text_config()
    changed = any(getattr(config, name, None) is not None for name in _LOGIT_CHANGES)
    return (None, None) if body is None or head is None or changed else (body, head)


def _load(folder: str, device: str, trust_remote_code: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"ifd model {folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    return tokenizer, model.to(device).eval()
