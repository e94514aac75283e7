from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.data.conversation import BadRow, canonicalise, completion_text, prompt_text, row_id

_ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def talk(*turns):
    """`u:Hi` is a user turn."""
    return [{"role": _ROLES[turn[0]], "content": turn[2:]} for turn in turns]


def conversations():
    turn = st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(list(_ROLES.values())), st.text())
    return st.lists(turn, max_size=8)


def test_the_row_id_is_blake2b_of_the_canonical_json():
    text = '[{"content":"Hé","role":"user"},{"content":"b","role":"assistant"}]'
    assert row_id(talk("u:Hé", "a:b")) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_the_row_id_ignores_key_order_and_further_keys():
    plain = talk("u:x", "a:y")
    other = [{"name": "n", "content": m["content"], "role": m["role"]} for m in plain]
    assert row_id(other) == row_id(plain)


def test_the_row_id_tells_roles_contents_and_turn_borders_apart():
    variants = [talk("u:ab", "a:c"), talk("u:a", "a:bc"), talk("s:ab", "a:c"), talk("u:a", "u:b", "a:c"), talk("u:ab", "a:c ")]
    assert len({row_id(v) for v in variants}) == len(variants)


def test_turns_before_the_first_user_turn_are_dropped_but_system_turns_stay():
    given_turns = talk("a:hello", "s:be brief", "t:42", "u:q", "a:r")
    assert canonicalise(given_turns) == talk("s:be brief", "u:q", "a:r")


def test_whatever_follows_the_last_assistant_turn_is_dropped():
    assert canonicalise(talk("u:q", "a:r", "u:more?", "t:x", "s:y")) == talk("u:q", "a:r")


def test_all_keeps_consecutive_turns_of_one_role():
    turns = talk("u:one", "u:two", "a:three", "a:four")
    assert canonicalise(turns) == turns


def test_first_keeps_system_turns_and_the_first_exchange():
    turns = talk("s:rules", "u:no reply", "u:q", "a:r", "u:later", "a:answer")
    assert canonicalise(turns, "first") == talk("s:rules", "u:q", "a:r")


def test_first_skips_an_exchange_with_a_blank_side():
    turns = talk("u: ", "a:r", "u:q", "a:\n", "u:q2", "a:r2")
    assert canonicalise(turns, "first") == talk("u:q2", "a:r2")


def test_first_wants_the_reply_directly_after_the_question():
    with pytest.raises(BadRow, match="no user turn with a reply"):
        canonicalise(talk("u:q", "t:tool", "a:r"), "first")


@pytest.mark.parametrize("turns", ["all", "first"])
@pytest.mark.parametrize(
    "given_turns", [[], talk("a:alone"), talk("u:alone"), talk("a:r", "u:q"), talk("u: ", "a:r"), talk("s:s", "a:r")]
)
def test_a_conversation_without_an_exchange_is_refused(given_turns, turns):
    with pytest.raises(BadRow, match="no user turn with a reply"):
        canonicalise(given_turns, turns)


def test_a_blank_last_reply_is_refused():
    with pytest.raises(BadRow, match="last assistant turn is blank"):
        canonicalise(talk("u:q", "a:r", "u:q", "a:  "))


@pytest.mark.parametrize(("text", "reason"), [("a\0b", "NUL"), ("\ud800", "lone surrogate")])
def test_text_that_no_tokenizer_takes_is_refused(text, reason):
    with pytest.raises(BadRow, match=reason):
        canonicalise([*talk("u:q"), {"role": "assistant", "content": text}])


def test_prompt_of_one_user_turn_is_its_content():
    assert prompt_text(talk("u: q ", "a:r")) == " q "


def test_prompt_of_several_turns_is_joined_by_blank_lines_without_blank_turns():
    messages = talk("s:s", "u:q", "a: ", "u:q2", "a:r")
    assert prompt_text(messages) == "s\n\nq\n\nq2"
    assert completion_text(messages) == "r"


@given(conversations(), st.sampled_from(["all", "first"]))
def test_what_is_kept_is_trainable_and_canonical_already(messages, turns):
    try:
        kept = canonicalise(messages, turns)
    except BadRow:
        return
    assert kept[-1]["role"] == "assistant"
    assert kept[-1]["content"].strip()
    assert any(m["role"] == "user" and m["content"].strip() for m in kept[:-1])
    assert all(m in messages for m in kept)
    assert canonicalise(kept, turns) == kept
