from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.data.conversation import BadRow, canonicalise
from divsel_ray.data.formats import CONVERTERS, UNKNOWN, detect, with_columns
from divsel_ray.errors import InputError

EXCHANGE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
CALL = {"id": "1", "type": "function", "function": {"name": "sky", "arguments": '{"day":1}'}}
RENDERED = '<tool_call>\n{"name": "sky", "arguments": {"day": 1}}\n</tool_call>'

SHAREGPT = {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}
MESSAGES = {"messages": EXCHANGE}
LIMA = {"conversations": ["q", "r"], "source": "wikihow"}
SELF_INSTRUCT = {"instruction": "q", "instances": [{"input": "", "output": "r"}], "is_classification": False}
ALPACA = {"instruction": "q", "input": "", "output": "r"}
PAIR = {"prompt": "q", "completion": "r"}
EXAMPLES = {
    "sharegpt": SHAREGPT,
    "messages": MESSAGES,
    "lima": LIMA,
    "self_instruct": SELF_INSTRUCT,
    "alpaca": ALPACA,
    "prompt_completion": PAIR,
}
OPENAI = {"messages": [EXCHANGE[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]}

_NAMES = [
    *("conversations", "messages", "items", "from", "value", "role", "content", "text", "type", "tool_calls", "function_call"),
    *("function", "name", "arguments", "instruction", "instances", "input", "output", "prompt", "completion", "question"),
    *("answer", "context", "system"),
]
_words = st.sampled_from(["human", "gpt", "user", "assistant", "system", "nobody", "", "q", "text", "\ud800", "\0"])
_leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.text(max_size=5) | _words | st.binary(max_size=3)
)
_garbage = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)
_turns = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("role", "from"), _words),
            **dict.fromkeys(("content", "value", "tool_calls", "function_call"), _garbage),
        },
    ),
    max_size=4,
)
_rows = _garbage | st.fixed_dictionaries({"messages": _turns}) | st.fixed_dictionaries({"prompt": _turns, "completion": _garbage})


def only(name, row):
    """The one conversation of a row."""
    [messages] = CONVERTERS[name](row)
    return messages


def said(role, content):
    return only("messages", {"messages": [{"role": role, "content": content}]})[0]["content"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_gives_the_same_messages(name):
    assert CONVERTERS[name](EXAMPLES[name]) == [EXCHANGE]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_format_is_told_from_the_rows(name):
    assert detect([EXAMPLES[name]]) == name


@pytest.mark.parametrize("key", ["conversations", "messages", "conversation", "items"])
def test_lists_of_turns_have_several_names(key):
    row = {key: SHAREGPT["conversations"]}
    assert detect([row]) == "sharegpt"
    assert only("sharegpt", row) == EXCHANGE
    row = {key: EXCHANGE}
    assert detect([row]) == "messages"
    assert only("messages", row) == EXCHANGE


@pytest.mark.parametrize("name", ["sharegpt", "messages", "openai"])
@pytest.mark.parametrize(
    "turn", [{"role": "user", "value": "q"}, {"from": "Human", "content": "q"}, {"from": "user", "text": "q"}]
)
def test_a_turn_may_mix_the_names_of_role_and_text(name, turn):
    assert only(name, {"conversations": [turn]}) == EXCHANGE[:1]


def test_keys_that_are_null_as_in_a_table_do_not_hide_others():
    turn = {"role": None, "content": None, "tool_calls": None, "from": "human", "value": "q"}
    assert only("sharegpt", {"messages": None, "conversations": [turn]}) == EXCHANGE[:1]
    assert only("prompt_completion", {"prompt": None, "completion": None, "question": "q", "answer": "r"}) == EXCHANGE


@pytest.mark.parametrize("key", ["conversation", "items"])
def test_a_list_under_an_everyday_word_is_no_conversation_unless_it_begins_like_one(key):
    assert detect([{key: ["milk", "bread"], "question": "q", "answer": "r"}]) == "prompt_completion"
    assert detect([{key: [{"name": "milk"}], "question": "q", "answer": "r"}]) == "prompt_completion"
    assert detect([{key: [], "text": "x"}]) == UNKNOWN
    assert detect([{key: EXCHANGE[:1]}]) == "messages"
    assert detect([{key: [{"from": "human", "value": "q"}]}]) == "sharegpt"


def test_lima_speakers_take_turns():
    messages = only("lima", {"conversations": ["a", "b", "c", "d"]})
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]


def test_each_instance_of_a_task_is_a_conversation():
    row = {"instruction": "i", "system": "s", "instances": [{"input": "a", "output": "b"}, {"output": "c"}]}
    first, second = CONVERTERS["self_instruct"](row)
    assert [message["content"] for message in first] == ["s", "i\n\na", "b"]
    assert [message["content"] for message in second] == ["s", "i", "c"]


@pytest.mark.parametrize("prompt", ["prompt", "instruction", "question", "query", "input"])
@pytest.mark.parametrize("completion", ["completion", "response", "answer"])
def test_prompt_and_completion_have_other_names(prompt, completion):
    row = {completion: "r", prompt: "q"}
    assert detect([row]) == "prompt_completion"
    assert only("prompt_completion", row) == EXCHANGE


def test_names_that_belong_together_are_preferred():
    assert only("prompt_completion", {"prompt": "x", "question": "q", "answer": "r"}) == EXCHANGE
    assert only("prompt_completion", {"input": "x", "output": "y", "prompt": "q", "response": "r"}) == EXCHANGE


@pytest.mark.parametrize("prompt", ["instruction", "question", "query", "prompt"])
def test_input_and_context_follow_the_prompt(prompt):
    assert only("prompt_completion", {prompt: "i", "context": "c", "response": "r"})[0]["content"] == "i\n\nc"
    assert only("prompt_completion", {prompt: "i", "input": "x", "context": " ", "response": "r"})[0]["content"] == "i\n\nx"


def test_a_text_that_is_the_prompt_again_does_not_follow_it():
    assert only("prompt_completion", {"prompt": "i", "input": "i", "response": "r"})[0]["content"] == "i"


@pytest.mark.parametrize("name", ["alpaca", "prompt_completion"])
def test_earlier_exchanges_come_before_the_instruction(name):
    row = {"instruction": "And then?", "output": "He left.", "history": [["Who came?", "Tom."], ["When?", "At noon."]]}
    assert [turn["content"] for turn in only(name, row)] == ["Who came?", "Tom.", "When?", "At noon.", "And then?", "He left."]
    assert [turn["role"] for turn in only(name, row)] == ["user", "assistant"] * 3
    assert len(only(name, {**row, "history": []})) == len(only(name, {**row, "history": None})) == 2
    for history in ("Who came?", ["so"], [["Who came?"]], [["Who came?", "Tom.", "When?"]]):
        with pytest.raises(BadRow, match="history is not a list of pairs"):
            only(name, {**row, "history": history})


@pytest.mark.parametrize("key", ["choices", "options", "endings"])
@pytest.mark.parametrize("answers", [["a", "b"], {"text": ["a", "b"], "label": ["A", "B"]}])
def test_a_question_with_answers_to_choose_from_is_refused(key, answers):
    with pytest.raises(BadRow, match=rf"^{key}: a multiple-choice question is not a conversation"):
        only("prompt_completion", {"question": "q", key: answers, "answer": "B"})
    assert only("prompt_completion", {"question": "q", key: "none", "answer": "r"}) == EXCHANGE


def test_a_context_of_facts_about_the_row_is_no_part_of_a_prompt():
    assert only("prompt_completion", {"instruction": "i", "input": "n", "response": "r"})[0]["content"] == "i\n\nn"
    assert only("prompt_completion", {"prompt": "p", "context": {"id": 3}, "completion": "r"})[0]["content"] == "p"


def test_prompt_and_completion_may_be_messages():
    system = {"role": "system", "content": "s"}
    row = {"prompt": [system, EXCHANGE[0]], "completion": EXCHANGE[1:]}
    assert detect([row]) == "prompt_completion"
    assert only("prompt_completion", row) == [system, *EXCHANGE]
    assert only("prompt_completion", {"prompt": "q", "completion": EXCHANGE[1:]}) == EXCHANGE
    assert [turn["content"] for turn in only("prompt_completion", {**row, "input": "n"})] == ["s", "q\n\nn", "r"]


def test_the_majority_of_the_rows_decides():
    assert detect([ALPACA, PAIR, 7, None, PAIR]) == "prompt_completion"


def test_a_tie_does_not_depend_on_the_order():
    assert detect([ALPACA, PAIR]) == detect([PAIR, ALPACA]) == "alpaca"


def test_rows_of_no_known_shape_are_unknown():
    assert detect([{"text": "q"}, 3, [], {"conversations": "q"}, {"prompt": "q"}, {"completion": "r"}]) == UNKNOWN
    assert detect([]) == UNKNOWN


@pytest.mark.parametrize(
    "turn", [OPENAI["messages"][1], {"role": "assistant", "function_call": {"name": "f"}}, {"role": "assistant", "content": None}]
)
def test_one_tool_turn_among_chat_messages_makes_them_openai(turn):
    assert detect([MESSAGES, MESSAGES, {"messages": [EXCHANGE[0], turn]}]) == "openai"
    assert detect([MESSAGES, {"messages": [{**EXCHANGE[0], "tool_calls": None, "function_call": None}]}]) == "messages"


@pytest.mark.parametrize("name", ["openai", "messages", "sharegpt"])
def test_a_tool_call_becomes_text(name):
    assert only(name, OPENAI) == [EXCHANGE[0], {"role": "assistant", "content": RENDERED}]


@pytest.mark.parametrize(
    ("turn", "content"),
    [
        ({"content": "Looking.", "tool_calls": [CALL]}, f"Looking.\n\n{RENDERED}"),
        ({"content": " ", "tool_calls": [CALL]}, RENDERED),
        ({"content": [{"type": "text", "text": "Looking."}], "tool_calls": [CALL]}, f"Looking.\n\n{RENDERED}"),
        ({"tool_calls": [CALL, {"name": "sky", "arguments": {"day": 1}}]}, f"{RENDERED}\n{RENDERED}"),
        ({"content": None, "function_call": CALL["function"]}, RENDERED),
        (
            {"function_call": {"name": "f", "arguments": "not JSON"}},
            '<tool_call>\n{"name": "f", "arguments": "not JSON"}\n</tool_call>',
        ),
        ({"function_call": {"name": "é"}}, '<tool_call>\n{"name": "é", "arguments": {}}\n</tool_call>'),
        (
            {"function_call": {"name": "f", "arguments": {"x": Decimal("0.5")}}},
            '<tool_call>\n{"name": "f", "arguments": {"x": 0.5}}\n</tool_call>',
        ),
        ({"content": "plain", "tool_calls": []}, "plain"),
    ],
)
def test_text_and_calls_of_a_turn_are_both_kept(turn, content):
    assert only("openai", {"messages": [{"role": "assistant", **turn}]})[0]["content"] == content


def test_a_tools_answer_stays_a_tool_turn_and_ids_names_and_weights_are_left_out():
    turn = {"role": "tool", "tool_call_id": "1", "name": "sky", "weight": 0, "content": "rain"}
    assert only("openai", {"messages": [turn], "tools": [{"type": "function"}]}) == [{"role": "tool", "content": "rain"}]


def test_text_parts_are_joined_by_a_newline():
    assert said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "a\nb"


def test_an_alpaca_input_follows_the_instruction():
    assert only("alpaca", {"instruction": "i", "input": "n", "output": "o"})[0]["content"] == "i\n\nn"
    assert only("alpaca", {"instruction": " ", "input": "n", "output": "o"})[0]["content"] == "n"
    assert only("alpaca", {"instruction": "i", "input": None, "output": "o"})[0]["content"] == "i"


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_key_becomes_the_first_message(name, key):
    assert only(name, {**EXAMPLES[name], key: "be kind"}) == [{"role": "system", "content": "be kind"}, *EXCHANGE]
    assert only(name, {**EXAMPLES[name], key: " "}) == EXCHANGE


@pytest.mark.parametrize(
    ("given_role", "role"),
    [
        *(("Human", "user"), (" user", "user"), ("prompter", "user")),
        *((name, "assistant") for name in ("gpt", "chatgpt", "BING", "bard", "claude", "assistant", "model")),
        *((name, "assistant") for name in ("function_call", "tool_call")),
        *((name, "system") for name in ("System", "developer")),
        *((name, "tool") for name in ("tool", "function", "function_response", "tool_response", "observation", "ipython")),
    ],
)
def test_roles_have_many_names(given_role, role):
    assert only("sharegpt", {"conversations": [{"from": given_role, "value": "x"}]}) == [{"role": role, "content": "x"}]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("sharegpt", {"conversations": "x"}, "conversations is a string, expected a list"),
        ("sharegpt", {"conversations": [3]}, "a turn is a number, expected an object"),
        ("sharegpt", {"conversations": [{"from": "critic", "value": "x"}]}, "unknown role 'critic'"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "no key content or value"),
        ("sharegpt", {"conversations": [{"value": "x"}]}, "no key role or from"),
        ("sharegpt", {"text": "x"}, "no key conversations or messages"),
        ("lima", {"conversations": ["x", 3]}, "a turn is a number, expected a string"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "content is null, expected a string"),
        ("messages", {"messages": [{"role": "user", "content": ["x"]}]}, "a part of a content is a string, expected an object"),
        (
            "openai",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "a part of a content has the type 'image_url', expected 'text'",
        ),
        ("openai", {"messages": [{"role": "user", "content": [{}]}]}, "a part of a content has the type 'null', expected 'text'"),
        ("openai", {"messages": [{"role": "assistant", "tool_calls": "[]"}]}, "tool_calls is a string, expected a list"),
        ("openai", {"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, "a tool call is a string, expected an object"),
        ("openai", {"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}, "no key name"),
        (
            "openai",
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": {"x": b"x"}}}]},
            "the arguments of a tool call cannot be written as JSON",
        ),
        ("self_instruct", {"instruction": "i", "instances": []}, "instances is empty, expected a list of objects"),
        ("self_instruct", {"instruction": "i"}, "instances is null, expected a list of objects"),
        ("self_instruct", {"instruction": "i", "instances": ["x"]}, "an instance is a string, expected an object"),
        ("alpaca", {"instruction": "i"}, "no key output"),
        ("alpaca", {"instruction": "i", "input": 3, "output": "o"}, "input is a number, expected a string"),
        ("prompt_completion", {"prompt": "x"}, "no key completion"),
        ("prompt_completion", {"question": None, "answer": "r"}, "question is null, expected a string"),
        ("prompt_completion", {"prompt": Decimal(1), "completion": "x"}, "prompt is a number, expected a string"),
        ("prompt_completion", {"prompt": True, "completion": "x"}, "prompt is a truth value, expected a string"),
        ("prompt_completion", {"prompt": [3], "completion": "x"}, "a turn is a number, expected an object"),
        ("prompt_completion", [1], "the row is a list, expected an object"),
        ("prompt_completion", {"instruction": "i", "input": 3, "response": "r"}, "input is a number, expected a string"),
        (UNKNOWN, {"text": "x"}, "format not recognised: .*"),
        (UNKNOWN, [1], "the row is a list, expected an object"),
    ],
)
def test_a_row_of_the_wrong_shape_is_refused_with_a_plain_reason(name, row, reason):
    with pytest.raises(BadRow, match=f"^{reason}$"):
        CONVERTERS[name](row)


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"prompt": "ask", "completion": "say"}, {"ask": "q", "say": "r", "prompt": "no"}),
        ({"prompt": "data.ask", "completion": "data.say.text"}, {"data": {"ask": "q", "say": {"text": "r"}}}),
        ({"prompt": "a.b", "completion": "c"}, {"a.b": "q", "a": {"b": "no"}, "c": "r"}),
        (
            {"prompt": "ask", "completion": "say", "input": "more", "system": "s"},
            {"ask": "q", "say": "r", "more": None, "s": None},
        ),
        ({"prompt": "ask", "completion": "say"}, {"ask": [EXCHANGE[0]], "say": [EXCHANGE[1]]}),
        ({"messages": "log"}, {"log": EXCHANGE}),
        ({"messages": "log"}, {"log": SHAREGPT["conversations"]}),
        ({"messages": "log"}, {"log": ["q", "r"]}),
    ],
)
def test_named_columns_say_where_the_parts_are(columns, row):
    assert with_columns(columns)(row) == [EXCHANGE]


def test_named_system_and_input_columns_are_used():
    convert = with_columns({"prompt": "p", "completion": "c", "input": "i", "system": "s"})
    [messages] = convert({"p": "ask", "c": "say", "i": "more", "s": "rules"})
    assert [message["content"] for message in messages] == ["rules", "ask\n\nmore", "say"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    "columns",
    [{"prompt": "p"}, {"completion": "c"}, {"messages": "m", "prompt": "p"}, {"messages": "m", "input": "i"}, {"system": "s"}],
)
def test_columns_that_make_no_conversation_are_refused(columns):
    with pytest.raises(InputError, match=r"pool\.columns: .*: expected prompt and completion"):
        with_columns(columns)


@pytest.mark.parametrize("row", [{}, {"data": 3}, {"data": {"asked": "q"}}])
def test_a_named_column_that_is_missing_is_named(row):
    with pytest.raises(BadRow, match=r"^no key data\.ask$"):
        with_columns({"prompt": "data.ask", "completion": "c"})(row)


@given(_rows, st.sampled_from(list(CONVERTERS)), st.sampled_from(["all", "first"]))
def test_any_value_is_either_converted_to_canonical_messages_or_refused(row, name, turns):
    try:
        conversations = [canonicalise(messages, turns) for messages in CONVERTERS[name](row)]
    except BadRow as bad:
        assert bad.reason
        return
    assert conversations
    for messages in conversations:
        assert all(set(message) == {"role", "content"} and isinstance(message["content"], str) for message in messages)
        assert messages[-1]["role"] == "assistant"


@given(
    _rows,
    st.dictionaries(st.sampled_from(["prompt", "completion"]), st.sampled_from(["prompt", "completion", "a.b"]), min_size=2),
)
def test_any_value_is_either_converted_by_columns_or_refused(row, columns):
    try:
        [messages] = with_columns(columns)(row)
    except BadRow as bad:
        assert bad.reason
        return
    assert all(set(message) == {"role", "content"} and isinstance(message["content"], str) for message in messages)


@given(st.lists(_rows, max_size=5))
def test_detection_never_fails(rows):
    assert detect(rows) in CONVERTERS
