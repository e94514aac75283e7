"""Row formats: each converter turns one parsed row into canonical messages or says why it cannot.

| format | row |
|---|---|
| sharegpt | `conversations`: a list of `{"from": ..., "value": ...}` |
| messages | `messages` (or `conversations`): a list of `{"role": ..., "content": ...}` |
| alpaca | `instruction`, `input`, `output` |
| prompt_completion | `prompt` and `completion` (or `response`), or `question` and `answer` |

A text in the key `system` of any row becomes a system message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from divsel_ray.data.conversation import BadRow, Message, Role

Row = Mapping[str, Any]
Converter = Callable[[object], list[Message]]

UNKNOWN = "unknown"
"""What `detect` answers when no row looks like a known format."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_TURN_LISTS = ("conversations", "messages")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
_KINDS = {
    str: "a string",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    Decimal: "a number",
    list: "a list",
    dict: "an object",
}


def from_sharegpt(row: object) -> list[Message]:
    """A ShareGPT row.

        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

    Roles are matched without case: human, user; gpt, chatgpt, bing, bard, assistant, model, function_call; system,
    developer; tool, function, function_response, observation.

    Raises:
        BadRow: the row has another shape, or a role is unknown.
    """
    return _from_turns(row, _TURN_LISTS, "from", "value")


def from_messages(row: object) -> list[Message]:
    """A row of chat messages, as OpenAI's and Hugging Face's tools write them.

        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

    Raises:
        BadRow: the row has another shape, or a role is unknown.
    """
    return _from_turns(row, _TURN_LISTS[::-1], "role", "content")


def from_alpaca(row: object) -> list[Message]:
    """An Alpaca row; a non-blank input follows the instruction after a blank line.

        {"instruction": "Translate.", "input": "Bonjour", "output": "Hello"}
        [{"role": "user", "content": "Translate.\\n\\nBonjour"}, {"role": "assistant", "content": "Hello"}]

    Raises:
        BadRow: instruction or output is missing, or a field is not a string.
    """
    fields = _as_object(row)
    instruction, output = _text(fields, "instruction"), _text(fields, "output")
    extra = "" if fields.get("input") is None else _text(fields, "input")
    question = "\n\n".join(part for part in (instruction, extra) if part.strip())
    return [*_system(fields), {"role": "user", "content": question}, {"role": "assistant", "content": output}]


def from_prompt_completion(row: object) -> list[Message]:
    """A row of two texts: prompt and completion, prompt and response, or question and answer.

        {"prompt": "2 + 2?", "completion": "4"}
        [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]

    Raises:
        BadRow: a field is missing or is not a string.
    """
    fields = _as_object(row)
    prompt, completion = next((pair for pair in _PAIRS if _has_all(fields, pair)), _PAIRS[0])
    question: Message = {"role": "user", "content": _text(fields, prompt)}
    return [*_system(fields), question, {"role": "assistant", "content": _text(fields, completion)}]


def from_unknown(row: object) -> list[Message]:
    """Refuse a row of a file whose format could not be told.

    Raises:
        BadRow: always.
    """
    _as_object(row)
    raise BadRow("format not recognised: expected conversations, messages, instruction and output, or prompt and completion")


CONVERTERS: dict[str, Converter] = {
    "sharegpt": from_sharegpt,
    "messages": from_messages,
    "alpaca": from_alpaca,
    "prompt_completion": from_prompt_completion,
    UNKNOWN: from_unknown,
}


def detect(rows: Iterable[object]) -> str:
    """The format that most of these rows (the first ones of a file) have; `unknown` when none has any."""
    votes = Counter(name for row in rows if (name := _shape(row)) != UNKNOWN)
    # Ties go to the format that comes first in the table, never to the row that happened to come first.
    return max(CONVERTERS, key=lambda name: votes[name]) if votes else UNKNOWN


def _shape(row: object) -> str:
    if not isinstance(row, Mapping):
        return UNKNOWN
    turns = next((row[key] for key in _TURN_LISTS if isinstance(row.get(key), list)), None)
    if turns is not None:
        first = turns[0] if turns else None
        return "messages" if isinstance(first, Mapping) and "role" in first else "sharegpt"
    if _has_all(row, ("instruction", "output")):
        return "alpaca"
    return "prompt_completion" if any(_has_all(row, pair) for pair in _PAIRS) else UNKNOWN


def _from_turns(row: object, list_keys: tuple[str, ...], role_key: str, text_key: str) -> list[Message]:
    fields = _as_object(row)
    key = next((key for key in list_keys if key in fields), None)
    if key is None:
        raise BadRow(f"no key {' or '.join(sorted(list_keys))}")
    turns = fields[key]
    if not isinstance(turns, list):
        raise BadRow(f"{key} is {_kind(turns)}, expected a list")
    return _system(fields) + [_message(turn, role_key, text_key) for turn in turns]


def _message(turn: object, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"a turn is {_kind(turn)}, expected an object")
    name = _text(turn, role_key)
    role = _ROLES.get(name.strip().lower())
    if role is None:
        raise BadRow(f"unknown role {name[:20]!r}")
    return {"role": role, "content": _text(turn, text_key)}


def _system(fields: Row) -> list[Message]:
    text = fields.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() else []


def _as_object(row: object) -> Row:
    if not isinstance(row, Mapping):
        raise BadRow(f"the row is {_kind(row)}, expected an object")
    return row


def _text(fields: Row, key: str) -> str:
    if key not in fields:
        raise BadRow(f"no key {key}")
    value = fields[key]
    if not isinstance(value, str):
        raise BadRow(f"{key} is {_kind(value)}, expected a string")
    return value


def _has_all(row: Row, keys: Iterable[str]) -> bool:
    return all(key in row for key in keys)


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"of type {type(value).__name__}")
