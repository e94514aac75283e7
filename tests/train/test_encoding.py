"""Rows as token ids and batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from divsel_ray.train.encoding import Conversation, Example, collate, encode, pack
from tests.models.tiny import save_tokenizer
from tests.train.rows import NO_SYSTEM, with_system


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def conversation(prompt="how are you", completion="i am fine") -> Conversation:
    return Conversation("0" * 32, [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}])


def test_a_long_prompt_leaves_room_for_the_completion(tokenizer):
    [example] = encode(tokenizer, [conversation(prompt="word " * 200, completion="fine " * 200)], max_tokens=32)
    assert (len(example.prompt), len(example.completion)) == (16, 16)
    [short] = encode(tokenizer, [conversation(prompt="word " * 200)], max_tokens=32)
    assert short.size == 32
    assert short.completion[-1] == tokenizer.eos_token_id


def test_a_row_that_the_chat_template_refuses_has_nothing_to_learn_and_says_why(tmp_path):
    strict = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path, NO_SYSTEM))
    good, refused = encode(strict, [conversation(), with_system(conversation())], max_tokens=32)
    assert (good.refusal, len(good.completion)) == ("", 4)
    assert refused == Example([strict.pad_token_id], [], "TemplateError: System role not supported")
    batch = collate([[good], [refused]], padding=0)
    assert (batch["labels"] != -100).sum(1).tolist() == [4, 0]


def test_completions_of_a_batch_begin_at_the_same_position():
    batch = collate([[Example([5, 6, 7], [8])], [Example([5], [9, 10])]], padding=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 0], [0, 0, 5, 9, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 3], [0, 0, 0, 1, 2]]
    assert batch["keep"].tolist() == [2, 3]
    assert batch["labels"].tolist() == [[8, -100], [9, 10]]


def test_packed_examples_restart_their_positions_and_so_does_the_padding():
    batch = collate([[Example([5, 6], [7]), Example([8], [9, 10])], [Example([11], [12])]], padding=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10], [11, 12, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]]
    assert "attention_mask" not in batch
    assert batch["keep"].tolist() == [0, 1, 3, 4]
    assert batch["labels"].tolist() == [[-100, 7, 9, 10], [12, -100, -100, -100]]


def test_a_batch_of_nothing_has_nothing_to_learn():
    batch = collate([], padding=3)
    assert batch["input_ids"].tolist() == [[3, 3]]
    assert batch["labels"].tolist() == [[-100]]


@given(st.lists(st.integers(2, 20), max_size=30))
def test_packing_keeps_every_example_and_no_two_sequences_fit_into_one(sizes):
    examples = [Example([number] * (size - 1), [1]) for number, size in enumerate(sizes)]
    sequences = pack(examples, max_tokens=20)
    assert sorted(example.prompt for sequence in sequences for example in sequence) == sorted(e.prompt for e in examples)
    filled = sorted(sum(example.size for example in sequence) for sequence in sequences)
    assert all(tokens <= 20 for tokens in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > 20
