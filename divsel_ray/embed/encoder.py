"""Text to unit vectors with any model sentence-transformers can load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.pooling import normalise, pool_chunks, split_tokens
from divsel_ray.models.batching import token_batches
from divsel_ray.models.references import resolve_model


class Encoder:
    """A sentence-transformers model on the process's device, fed token ids in batches of like length.

    Attributes:
        dimension: length of a vector.
    """

    def __init__(self, config: EmbedConfig) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self._torch = torch
        self._config = config
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = SentenceTransformer(
            resolve_model(config.model), device=device, trust_remote_code=config.trust_remote_code
        ).eval()
        self._tokenizer = self._model.tokenizer
        self._prefix, self._suffix = special_tokens(self._tokenizer)
        special = len(self._prefix) + len(self._suffix)
        limit = self._model.max_seq_length or config.max_tokens + special
        self._window = max(1, min(config.window or limit, limit) - special)
        self.dimension = int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str], keys: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: (n,) texts.
            keys: (n,) row ids, which order texts of like length into batches.

        Returns:
            (n, dimension) float16, L2-normalised.
        """
        if not texts:
            return np.zeros((0, self.dimension), np.float16)
        ids = self._tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        chunks, owners = [], []
        for row, tokens in enumerate(ids):
            pieces = split_tokens(tokens, self._window, self._config.max_tokens)
            chunks += pieces
            owners += [row] * len(pieces)
        vectors = self._encode_chunks(chunks, [f"{keys[row]}:{i:09d}" for i, row in enumerate(owners)])
        counts = np.array([len(chunk) for chunk in chunks])
        return normalise(pool_chunks(vectors, counts, np.array(owners), len(texts))).astype(np.float16)

    def _encode_chunks(self, chunks: list[list[int]], keys: list[str]) -> np.ndarray:
        inputs = [self._prefix + chunk + self._suffix for chunk in chunks]
        vectors = np.zeros((len(chunks), self.dimension), np.float32)
        with self._torch.inference_mode():
            for batch in token_batches([len(ids) for ids in inputs], keys, self._config.batch_tokens):
                features = self._tokenizer.pad({"input_ids": [inputs[i] for i in batch]}, return_tensors="pt")
                features = features.to(self._model.device)
                vectors[batch] = self._model(dict(features))["sentence_embedding"].float().cpu().numpy()
        return vectors


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids a tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    text = [at for at, special in enumerate(encoded.special_tokens_mask) if not special]
    first, last = (text[0], text[-1] + 1) if text else (len(encoded.input_ids), len(encoded.input_ids))
    return list(encoded.input_ids[:first]), list(encoded.input_ids[last:])
