"""An embedding model in a vLLM engine in this process, with the pooling that the model's files specify."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.chunked import batch_tokens_of, special_tokens
from divsel_ray.models.loading import load_tokenizer, loading, positions_of
from divsel_ray.models.references import resolve_model
from divsel_ray.models.vllm import pooling_engine


class VllmModel:
    """A `ChunkModel`; vLLM forms the batches itself.

    Raises:
        InputError: vLLM is not installed, or cannot load the model.
    """

    def __init__(self, config: EmbedConfig) -> None:
        import torch
        from transformers import AutoConfig

        folder, trusted = resolve_model(config.model), config.trust_remote_code
        with loading(f"embed.model {config.model}"):
            self.tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
            self.prefix, self.suffix = special_tokens(self.tokenizer)
            limit = config.window or config.max_tokens + len(self.prefix) + len(self.suffix)
            positions = positions_of(AutoConfig.from_pretrained(folder, trust_remote_code=trusted))
            self.limit: int | None = min(limit, positions or limit)
        self._llm = pooling_engine(
            f"embed.model {config.model}",
            folder,
            dtype=config.dtype,
            max_tokens=self.limit,
            batch_tokens=batch_tokens_of(config, on_gpu=torch.cuda.is_available()),
            trust_remote_code=trusted,
        )
        self.dimension = int(self.embed([[*self.prefix, *self.suffix] or [0]], [""]).shape[1])

    def embed(self, inputs: Sequence[list[int]], keys: Sequence[str]) -> np.ndarray:
        """See `ChunkModel`. Inputs are sent in the order of (tokens, key), whatever order they come in."""
        order = sorted(range(len(inputs)), key=lambda at: (len(inputs[at]), keys[at]))
        outputs = self._llm.embed([{"prompt_token_ids": inputs[at]} for at in order], use_tqdm=False)
        found = np.array([output.outputs.embedding for output in outputs], np.float32)
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors
