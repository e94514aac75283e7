from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.data.conversation import BadRow
from divsel_ray.data.formats import CONVERTERS, UNKNOWN, detect

EXCHANGE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
SHAREGPT = {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}
MESSAGES = {"messages": EXCHANGE}
ALPACA = {"instruction": "q", "input": "", "output": "r"}
PAIR = {"prompt": "q", "completion": "r"}
EXAMPLES = {"sharegpt": SHAREGPT, "messages": MESSAGES, "alpaca": ALPACA, "prompt_completion": PAIR}

_names = st.sampled_from(
    [
        "conversations",
        "messages",
        "from",
        "value",
        "role",
        "content",
        "instruction",
        "input",
        "output",
        "prompt",
        "completion",
        "system",
    ]
)
_words = st.sampled_from(["human", "gpt", "user", "assistant", "system", "nobody", "", "q"])
_leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.text(max_size=5) | _words | st.binary(max_size=3)
)
_garbage = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names | st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_gives_the_same_messages(name):
    assert CONVERTERS[name](EXAMPLES[name]) == EXCHANGE


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_format_is_told_from_the_rows(name):
    assert detect([EXAMPLES[name]]) == name


def test_chat_messages_under_the_key_conversations_are_messages():
    row = {"conversations": EXCHANGE}
    assert detect([row]) == "messages"
    assert CONVERTERS["messages"](row) == EXCHANGE


def test_sharegpt_turns_under_the_key_messages_are_sharegpt():
    row = {"messages": SHAREGPT["conversations"]}
    assert detect([row]) == "sharegpt"
    assert CONVERTERS["sharegpt"](row) == EXCHANGE


@pytest.mark.parametrize("row", [{"prompt": "q", "response": "r"}, {"question": "q", "answer": "r"}])
def test_other_names_of_prompt_and_completion_are_known(row):
    assert detect([row]) == "prompt_completion"
    assert CONVERTERS["prompt_completion"](row) == EXCHANGE


def test_the_majority_of_the_rows_decides():
    assert detect([ALPACA, PAIR, 7, None, PAIR]) == "prompt_completion"


def test_a_tie_does_not_depend_on_the_order():
    assert detect([ALPACA, PAIR]) == detect([PAIR, ALPACA]) == "alpaca"


def test_rows_of_no_known_shape_are_unknown():
    assert detect([{"text": "q"}, 3, [], {"conversations": "q"}]) == UNKNOWN
    assert detect([]) == UNKNOWN


def test_an_alpaca_input_follows_the_instruction():
    assert CONVERTERS["alpaca"]({"instruction": "i", "input": "n", "output": "o"})[0]["content"] == "i\n\nn"
    assert CONVERTERS["alpaca"]({"instruction": " ", "input": "n", "output": "o"})[0]["content"] == "n"
    assert CONVERTERS["alpaca"]({"instruction": "i", "input": None, "output": "o"})[0]["content"] == "i"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_system_key_becomes_the_first_message(name):
    messages = CONVERTERS[name]({**EXAMPLES[name], "system": "be kind"})
    assert messages == [{"role": "system", "content": "be kind"}, *EXCHANGE]


@pytest.mark.parametrize(
    ("given_role", "role"),
    [
        ("Human", "user"),
        (" user", "user"),
        ("chatgpt", "assistant"),
        ("bing", "assistant"),
        ("bard", "assistant"),
        ("function", "tool"),
    ],
)
def test_roles_have_many_names(given_role, role):
    assert CONVERTERS["sharegpt"]({"conversations": [{"from": given_role, "value": "x"}]}) == [{"role": role, "content": "x"}]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("sharegpt", {"conversations": "x"}, "conversations is a string, expected a list"),
        ("sharegpt", {"conversations": [3]}, "a turn is a number, expected an object"),
        ("sharegpt", {"conversations": [{"from": "critic", "value": "x"}]}, "unknown role 'critic'"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "no key value"),
        ("sharegpt", {"text": "x"}, "no key conversations or messages"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "content is null, expected a string"),
        ("messages", {"messages": [{"role": "user", "content": [{}]}]}, "content is a list, expected a string"),
        ("alpaca", {"instruction": "i"}, "no key output"),
        ("alpaca", {"instruction": "i", "input": 3, "output": "o"}, "input is a number, expected a string"),
        ("prompt_completion", {"prompt": Decimal(1), "completion": "x"}, "prompt is a number, expected a string"),
        ("prompt_completion", {"prompt": True, "completion": "x"}, "prompt is a truth value, expected a string"),
        ("prompt_completion", [1], "the row is a list, expected an object"),
        (UNKNOWN, {"text": "x"}, "format not recognised: .*"),
    ],
)
def test_a_row_of_the_wrong_shape_is_refused_with_a_plain_reason(name, row, reason):
    with pytest.raises(BadRow, match=f"^{reason}$"):
        CONVERTERS[name](row)


@given(_garbage, st.sampled_from(list(CONVERTERS)))
def test_garbage_is_either_converted_or_refused(row, name):
    try:
        messages = CONVERTERS[name](row)
    except BadRow as bad:
        assert bad.reason
        return
    assert all(set(m) == {"role", "content"} and isinstance(m["content"], str) for m in messages)


@given(st.lists(_garbage, max_size=5))
def test_detection_never_fails(rows):
    assert detect(rows) in CONVERTERS
