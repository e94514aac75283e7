from __future__ import annotations

import numpy as np
import pytest

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.encoder import load_encoder


@pytest.mark.slow
def test_vllm_gives_the_vectors_of_sentence_transformers():
    pytest.importorskip("vllm")
    texts = ["How are you?", "Write a story about cats and dogs. " * 60, "rain", ""]
    keys = [f"{at:032x}" for at in range(len(texts))]
    expected = load_encoder(EmbedConfig(window=128)).encode(texts, keys)
    encoder = load_encoder(EmbedConfig(encoder="vllm", window=128))
    assert encoder.dimension == 384
    assert np.abs(encoder.encode(texts, keys) - expected).max() < 2e-3
