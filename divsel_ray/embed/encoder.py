"""The interface of encoders, which turn texts into unit vectors with a model or server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from divsel_ray.config import EmbedConfig


class Encoder(Protocol):
    """Embeds texts as unit vectors; a text's vector may depend on the other texts of the call, never on their order."""

    @property
    def dimension(self) -> int:
        """Length of a vector; 0 while unknown, before a server's first answer."""

    def encode(self, texts: Sequence[str], keys: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: (n,) texts.
            keys: (n,) unique names, e.g. row ids, which determine the batches of texts of equal length.

        Returns:
            (n, dimension) float16, L2-normalised.
        """


def load_encoder(config: EmbedConfig, answers: Path | None = None) -> Encoder:
    """Load the encoder that the settings name, with its model on the process's device.

    Args:
        config: settings; vectors named in `config.given` need no encoder.
        answers: folder in which a server's answers are saved, so that none is paid for again.

    Raises:
        InputError: the model cannot be loaded, its backend is not installed, or a server's key is missing.
    """
    if config.api is not None:
        from divsel_ray.embed.api import ApiEncoder

        return ApiEncoder(config, config.api, answers)
    from divsel_ray.embed.chunked import ChunkedEncoder, ChunkModel

    model: ChunkModel
    if config.encoder == "causal_lm":
        from divsel_ray.embed.causal_lm import CausalModel

        model = CausalModel(config)
    elif config.encoder == "vllm":
        from divsel_ray.embed.vllm_model import VllmModel

        model = VllmModel(config)
    else:
        from divsel_ray.embed.sentence_model import SentenceModel

        model = SentenceModel(config)
    return ChunkedEncoder(model, config)
