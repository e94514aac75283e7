"""A causal language model as encoder: the hidden states of its last layer, at the last token or averaged over tokens.

Yu et al. 2024 (sec. 4.4) embed with the last token's hidden state of Llama-2-7B. Hidden states are the inputs of the
language-modelling head, after the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.chunked import batch_tokens_of
from divsel_ray.errors import InputError
from divsel_ray.models.batching import pad_ids, token_batches
from divsel_ray.models.loading import load_tokenizer, loading, positions_of
from divsel_ray.models.references import resolve_model


class CausalModel:
    """A `ChunkModel` on the process's device.

    Every chunk begins with the model's beginning-of-sequence token (or, without one, its end-of-sequence token). Means leave
    that token out: its hidden state is the same for all texts, and in many models so large that it dominates all others.

    Raises:
        InputError: the model cannot be loaded, or has neither token.
    """

    def __init__(self, config: EmbedConfig) -> None:
        import torch

        self._torch, self._mean = torch, config.pooling == "mean"
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer, self._model = _load(config, self._device)
        self.prefix = [_start_of(self.tokenizer, config.model)]
        self.suffix: list[int] = []
        self.limit = positions_of(self._model.config)
        self.dimension = int(self._model.config.get_text_config().hidden_size)
        self._batch_tokens = batch_tokens_of(config, on_gpu=self._device == "cuda")

    def embed(self, inputs: Sequence[list[int]], keys: Sequence[str]) -> np.ndarray:
        """See `ChunkModel`."""
        vectors = np.zeros((len(inputs), self.dimension), np.float32)
        with self._torch.inference_mode():
            for batch in token_batches([len(ids) for ids in inputs], keys, self._batch_tokens):
                vectors[batch] = self._embed([inputs[i] for i in batch]).cpu().numpy()
        return vectors

    def _embed(self, batch: list[list[int]]) -> Any:
        torch = self._torch
        # Padding follows the texts, so that no token of a causal model attends to it.
        ids, mask = (torch.from_numpy(values) for values in pad_ids(batch, 0))
        lengths = mask.sum(dim=1)
        output = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False)
        states = output.last_hidden_state.float()
        if not self._mean:
            return states[torch.arange(len(batch)), lengths - 1]
        weights = mask.float()
        # An empty text is represented by its first token.
        weights[lengths > len(self.prefix), : len(self.prefix)] = 0
        weights = weights.to(self._device)
        return (states * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def _load(config: EmbedConfig, device: str) -> tuple[Any, Any]:
    from transformers import AutoModel

    folder, trusted = resolve_model(config.model), config.trust_remote_code
    with loading(f"embed.model {config.model}"):
        tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
        model = AutoModel.from_pretrained(folder, dtype=config.dtype, trust_remote_code=trusted)
    return tokenizer, model.to(device).eval()


def _start_of(tokenizer: Any, model: str) -> int:
    starts = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    if not starts:
        raise InputError(f"embed.model {model}: its tokenizer has no beginning- or end-of-sequence token; use another encoder")
    return int(starts[0])
