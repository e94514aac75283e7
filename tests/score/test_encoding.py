from __future__ import annotations

import pytest

from divsel_ray.score.encoding import collate, encode_exchange, position_limit, prompt_with_roles, seen_completion
from divsel_ray.score.scorer import Exchange, encode_each


def exchange(row_id: str, prompt: str, completion: str) -> Exchange:
    return Exchange(row_id, [{"role": "user", "content": prompt}], completion)


def words(tokenizer, encoded):
    return tokenizer.convert_ids_to_tokens(encoded.ids)


def test_a_pair_is_the_prompt_then_the_completion_in_its_own_segment(pair_tokenizer):
    encoded = encode_exchange(pair_tokenizer, exchange("a", "w1 w2", "w3"), 20)
    assert words(pair_tokenizer, encoded) == ["[CLS]", "w1", "w2", "[SEP]", "w3", "[SEP]"]
    assert encoded.types == [0, 0, 0, 0, 1, 1]


def test_a_long_prompt_loses_its_beginning(pair_tokenizer):
    encoded = encode_exchange(pair_tokenizer, exchange("a", "w1 w2 w3 w4 w5 w6 w7 w8 w9", "w10 w11"), 8)
    assert words(pair_tokenizer, encoded) == ["[CLS]", "w7", "w8", "w9", "[SEP]", "w10", "w11", "[SEP]"]


def test_a_long_completion_loses_its_end_but_keeps_half(pair_tokenizer):
    row = exchange("a", "w1 w2 w3 w4 w5 w6", "w10 w11 w12 w13 w14 w15 w16")
    encoded = encode_exchange(pair_tokenizer, row, 10)
    assert words(pair_tokenizer, encoded) == ["[CLS]", "w5", "w6", "[SEP]", "w10", "w11", "w12", "w13", "w14", "[SEP]"]
    assert seen_completion(pair_tokenizer, row, 10) == "w10 w11 w12 w13 w14"


def test_a_long_completion_uses_the_room_a_short_prompt_leaves(pair_tokenizer):
    row = exchange("a", "w1", "w10 w11 w12 w13 w14 w15 w16 w17")
    assert words(pair_tokenizer, encode_exchange(pair_tokenizer, row, 10))[3:] == [
        "w10",
        "w11",
        "w12",
        "w13",
        "w14",
        "w15",
        "[SEP]",
    ]
    assert seen_completion(pair_tokenizer, row, 10) == "w10 w11 w12 w13 w14 w15"


def test_a_chat_has_one_beginning_of_sequence_token(chat_tokenizer):
    encoded = encode_exchange(chat_tokenizer, exchange("a", "w1", "w2"), 20)
    assert words(chat_tokenizer, encoded) == ["[BOS]", "user", "w1", "[EOS]", "assistant", "w2", "[EOS]"]


def test_a_long_chat_keeps_its_first_and_its_closing_token(chat_tokenizer):
    encoded = encode_exchange(chat_tokenizer, exchange("a", "w1 w2 w3 w4 w5", "w11 w12 w13 w14 w15 w16 w17 w18"), 10)
    assert words(chat_tokenizer, encoded) == ["[BOS]", "w5", "[EOS]", "assistant", "w11", "w12", "w13", "w14", "w15", "[EOS]"]


def test_a_conversation_of_several_messages_names_its_roles():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert prompt_with_roles(messages) == "User: a\nAssistant: b\nUser: c"
    assert prompt_with_roles(messages[:1]) == "a"


def test_texts_are_padded_on_the_right_and_masked(pair_tokenizer):
    batch = [encode_exchange(pair_tokenizer, exchange("a", prompt, "w3"), 20) for prompt in ("w1", "w1 w2")]
    inputs = collate(pair_tokenizer, batch, 0)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert inputs["input_ids"][0, -1] == 0
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]


def test_a_model_without_segments_gets_no_segment_ids(chat_tokenizer):
    inputs = collate(chat_tokenizer, [encode_exchange(chat_tokenizer, exchange("a", "w1", "w2"), 20)], 0)
    assert set(inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(("kind", "expected"), [("bert", 64), ("roberta", 62)])
def test_roberta_has_two_positions_fewer_than_its_configuration_says(kind, expected):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = AutoConfig.for_model(kind, max_position_embeddings=64, **sizes)
    assert position_limit(AutoModelForSequenceClassification.from_config(config)) == expected


def test_a_row_that_cannot_be_encoded_is_left_out_and_named():
    def encode(row: Exchange) -> int:
        return len(row.completion) if row.row_id != "bad" else int("x")

    encoded, problem = encode_each([exchange("a", "", "xy"), exchange("bad", "", ""), exchange("c", "", "z")], encode)
    assert encoded == {0: 2, 2: 1}
    assert problem.startswith("row bad: ValueError: ")
