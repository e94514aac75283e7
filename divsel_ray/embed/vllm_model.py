"""An embedding model in vLLM's engine in this process, with the pooling that the model's files ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.chunked import batch_tokens_of, special_tokens
from divsel_ray.errors import InputError
from divsel_ray.models.references import resolve_model
from divsel_ray.models.vllm import prepare_vllm

_CPU_CACHE = 1 << 30
"""Bytes of vLLM's cache on a CPU; on a GPU its own rule holds."""


class VllmModel:
    """A `ChunkModel`; vLLM cuts the batches itself.

    Raises:
        InputError: vLLM is not installed, or cannot load the model.
    """

    def __init__(self, config: EmbedConfig) -> None:
        prepare_vllm()
        import torch

        try:
            from vllm import LLM
        except ImportError:
            raise InputError(
                'embed.encoder vllm: vLLM is not installed on this node; install "divsel-ray[cpu]" or [gpu], or name another'
            ) from None
        from transformers import AutoTokenizer

        folder, on_gpu = resolve_model(config.model), torch.cuda.is_available()
        trusted = config.trust_remote_code
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
            self.prefix, self.suffix = special_tokens(self.tokenizer)
            limit = config.window or config.max_tokens + len(self.prefix) + len(self.suffix)
            self.limit: int | None = min(limit, _positions(folder, trusted) or limit)
            self._llm = LLM(
                folder,
                runner="pooling",
                dtype=config.dtype,
                max_model_len=self.limit,
                max_num_batched_tokens=max(batch_tokens_of(config, on_gpu=on_gpu), self.limit),
                enforce_eager=not on_gpu,
                trust_remote_code=trusted,
                disable_log_stats=True,
                seed=0,
                **({} if on_gpu else {"kv_cache_memory_bytes": _CPU_CACHE}),
            )
        except (OSError, ValueError) as error:
            raise InputError(f"embed.model {config.model}: vLLM cannot load it: {' '.join(str(error).split())[:300]}") from None
        self.dimension = int(self.embed([[*self.prefix, *self.suffix] or [0]], [""]).shape[1])

    def embed(self, inputs: Sequence[list[int]], keys: Sequence[str]) -> np.ndarray:
        """See `ChunkModel`. Sent in the order of (tokens, key), whatever order they come in."""
        order = sorted(range(len(inputs)), key=lambda at: (len(inputs[at]), keys[at]))
        outputs = self._llm.embed([{"prompt_token_ids": inputs[at]} for at in order], use_tqdm=False)
        found = np.array([output.outputs.embedding for output in outputs], np.float32)
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors


def _positions(folder: str, trusted: bool) -> int | None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    return getattr(config.get_text_config(), "max_position_embeddings", None)
