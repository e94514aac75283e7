"""Embeds long texts with any model for short ones: tokens are split into chunks, and chunk vectors averaged by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.pooling import normalise, pool_chunks, split_tokens
from divsel_ray.errors import InputError

_CHARACTERS = 6
"""Characters read per wanted token, more than the average of nearly any text."""
_MARGIN = 128
"""Longest word in tokens: the cut may fall inside a word, so that many tokens before it may differ from the whole text's."""
CPU_TOKENS, GPU_TOKENS = 2048, 32_768
"""Padded tokens per batch: the activations of more exceed a CPU's caches; fewer do not keep a GPU busy."""


class ChunkModel(Protocol):
    """A model that embeds token ids.

    Attributes:
        tokenizer: tokenizer of the model.
        dimension: length of a vector.
        prefix, suffix: ids around every chunk.
        limit: longest input in tokens, including prefix and suffix; None for no limit.
    """

    tokenizer: Any
    dimension: int
    prefix: list[int]
    suffix: list[int]
    limit: int | None

    def embed(self, inputs: Sequence[list[int]], keys: Sequence[str]) -> np.ndarray:
        """Embed token ids, including prefix and suffix, as vectors (n, dimension) float32; keys break ties of length."""


class ChunkedEncoder:
    """An `Encoder` based on a chunk model.

    Attributes:
        dimension: length of a vector.
    """

    def __init__(self, model: ChunkModel, config: EmbedConfig) -> None:
        self._model, self._config, self._max_tokens = model, config, config.max_tokens
        special = len(model.prefix) + len(model.suffix)
        limit = model.limit or config.max_tokens + special
        self._window = max(1, min(config.window or limit, limit) - special)
        self.dimension = model.dimension

    def encode(self, texts: Sequence[str], keys: Sequence[str]) -> np.ndarray:
        """Embed texts, see `Encoder`.

        Raises:
            InputError: a vector is not finite.
        """
        if not texts:
            return np.zeros((0, self.dimension), np.float16)
        ids = first_ids(self._model.tokenizer, texts, self._max_tokens)
        chunks, owners = [], []
        for row, tokens in enumerate(ids):
            pieces = split_tokens(tokens, self._window, self._max_tokens)
            chunks += pieces
            owners += [row] * len(pieces)
        inputs = [self._model.prefix + chunk + self._model.suffix for chunk in chunks]
        vectors = self._model.embed(inputs, [f"{keys[row]}:{i:09d}" for i, row in enumerate(owners)])
        if not np.isfinite(vectors).all():
            raise InputError(
                f"embed.dtype {self._config.dtype}: {self._config.model} returns vectors that are not finite, probably by "
                "overflow; set float32 or bfloat16, or use another model"
            )
        counts = np.array([len(chunk) for chunk in chunks])
        return normalise(pool_chunks(vectors, counts, np.array(owners), len(texts))).astype(np.float16)


def first_ids(tokenizer: Any, texts: Sequence[str], count: int) -> list[list[int]]:
    """The first `count` token ids of each text, without special tokens, as if the whole text were tokenized."""
    room = _CHARACTERS * (count + _MARGIN)
    ids = _tokenize(tokenizer, [text[:room] for text in texts])
    short = [at for at, text in enumerate(texts) if len(text) > room and len(ids[at]) < count + _MARGIN]
    for at, whole in zip(short, _tokenize(tokenizer, [texts[at] for at in short]), strict=True):
        ids[at] = whole
    return [list(row[:count]) for row in ids]


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    return list(tokenizer(texts, **options).input_ids)


def batch_tokens_of(config: EmbedConfig, *, on_gpu: bool) -> int:
    """Padded tokens per batch: the setting, or the default of the device."""
    return config.batch_tokens or (GPU_TOKENS if on_gpu else CPU_TOKENS)


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    text = [at for at, special in enumerate(encoded.special_tokens_mask) if not special]
    first, last = (text[0], text[-1] + 1) if text else (len(encoded.input_ids), len(encoded.input_ids))
    return list(encoded.input_ids[:first]), list(encoded.input_ids[last:])
