"""Any model that sentence-transformers can load, with its own pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.chunked import batch_tokens_of, special_tokens
from divsel_ray.errors import InputError
from divsel_ray.models.batching import token_batches
from divsel_ray.models.references import resolve_model


class SentenceModel:
    """A `ChunkModel` on the process's device, fed in batches of like length.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, config: EmbedConfig) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self._torch, on_gpu = torch, torch.cuda.is_available()
        try:
            self._model = SentenceTransformer(
                resolve_model(config.model),
                device="cuda" if on_gpu else "cpu",
                trust_remote_code=config.trust_remote_code,
                model_kwargs={"dtype": config.dtype},
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"embed.model {config.model}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
        self.tokenizer = self._model.tokenizer
        self.prefix, self.suffix = special_tokens(self.tokenizer)
        self.limit = self._model.max_seq_length
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self._batch_tokens = batch_tokens_of(config, on_gpu=on_gpu)

    def embed(self, inputs: Sequence[list[int]], keys: Sequence[str]) -> np.ndarray:
        """See `ChunkModel`."""
        vectors = np.zeros((len(inputs), self.dimension), np.float32)
        with self._torch.inference_mode():
            for batch in token_batches([len(ids) for ids in inputs], keys, self._batch_tokens):
                features = self.tokenizer.pad({"input_ids": [inputs[i] for i in batch]}, return_tensors="pt")
                features = features.to(self._model.device)
                vectors[batch] = self._model(dict(features))["sentence_embedding"].float().cpu().numpy()
        return vectors
