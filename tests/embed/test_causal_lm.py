"""Hidden states of a language model as vectors, beside those that transformers gives text by text."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.encoder import load_encoder
from divsel_ray.errors import InputError
from tests.models.tiny import save_language_model

TEXTS = ["how are you", "write a story about cats and dogs", "rain", ""]
KEYS = [f"{at:032x}" for at in range(len(TEXTS))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_language_model(tmp_path_factory.mktemp("lm")))


def hidden_states(model, text):
    """Of the last layer, (tokens + 1, d): the start token and the text's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    with torch.inference_mode():
        output = AutoModelForCausalLM.from_pretrained(model)(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0].numpy()


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_a_text_is_the_last_hidden_state_of_its_last_token(model):
    found = load_encoder(EmbedConfig(encoder="causal_lm", model=model)).encode(TEXTS, KEYS)
    expected = np.stack([unit(hidden_states(model, text)[-1]) for text in TEXTS])
    assert np.abs(found - expected).max() < 1e-3


def test_or_the_mean_over_its_tokens_but_the_start_token(model):
    found = load_encoder(EmbedConfig(encoder="causal_lm", model=model, pooling="mean")).encode(TEXTS, KEYS)
    expected = np.stack([unit((states[1:] if len(states) > 1 else states).mean(axis=0)) for states in _all_states(model)])
    assert np.abs(found - expected).max() < 1e-3


def _all_states(model):
    return [hidden_states(model, text) for text in TEXTS]


def test_a_long_text_is_the_mean_of_its_chunks_by_their_tokens(model):
    encoder = load_encoder(EmbedConfig(encoder="causal_lm", model=model, window=9))
    found = encoder.encode(["red " * 8 + "green green"], KEYS[:1])
    states = [hidden_states(model, text)[-1] for text in ("red " * 8, "green green")]
    assert np.abs(found[0] - unit(0.8 * states[0] + 0.2 * states[1])).max() < 1e-3


def test_vectors_do_not_depend_on_the_order_of_texts(model):
    encoder = load_encoder(EmbedConfig(encoder="causal_lm", model=model, batch_tokens=16))
    forward, backward = encoder.encode(TEXTS, KEYS), encoder.encode(TEXTS[::-1], KEYS[::-1])
    assert np.array_equal(forward, backward[::-1])


def test_a_folder_without_a_model_is_one_clear_line(model, tmp_path):
    shutil.copytree(model, tmp_path / "lm")
    (tmp_path / "lm" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"embed\.model .*: cannot be loaded"):
        load_encoder(EmbedConfig(encoder="causal_lm", model=str(tmp_path / "lm")))
