from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from divsel_ray.data.tokens import _from_transformers, count_tokens
from divsel_ray.errors import InputError


def test_special_tokens_truncation_and_padding_do_not_count(tiny_tokenizer):
    assert count_tokens(tiny_tokenizer, ["hello", "", "one two , three four five six seven eight nine ten"]) == [1, 0, 11]


def test_very_long_texts_are_counted_by_their_beginning(tiny_tokenizer):
    assert count_tokens(tiny_tokenizer, ["a " * 80_000]) == [50_000]


def test_counts_equal_those_of_transformers(tiny_tokenizer):
    texts = [f"hello {'world ' * i}\n\nGrüße, 😀!" for i in range(300)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    expected = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert count_tokens(tiny_tokenizer, texts) == expected
    # The way of a Hugging Face id, and of a folder without tokenizer.json.
    assert _from_transformers(tiny_tokenizer)(texts) == expected


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=f"tokenizer {tmp_path}: cannot be loaded"):
        count_tokens(str(tmp_path), ["x"])


def test_a_broken_tokenizer_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        count_tokens(str(tmp_path), ["x"])
