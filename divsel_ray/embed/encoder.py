"""What turns texts into unit vectors, whichever model or server does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from divsel_ray.config import EmbedConfig


class Encoder(Protocol):
    """Texts in, unit vectors out; which vector a text gets depends on the texts of the call, never on their order."""

    @property
    def dimension(self) -> int:
        """Length of a vector; 0 while it is not known, which a server says with its first answer."""

    def encode(self, texts: Sequence[str], keys: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: (n,) texts.
            keys: (n,) unique names, e.g. row ids, which order texts of like length into batches.

        Returns:
            (n, dimension) float16, L2-normalised.
        """


def load_encoder(config: EmbedConfig, answers: Path | None = None) -> Encoder:
    """The encoder that the settings name, its model loaded on the process's device.

    Args:
        config: settings; `config.given` names vectors that need no encoder.
        answers: folder in which a server's answers are kept, so that none is paid for again.

    Raises:
        InputError: the model cannot be loaded, what runs it is not installed, or a server's key is missing.
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
