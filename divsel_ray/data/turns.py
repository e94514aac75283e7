"""Turns of a conversation in all dialects found in instruction files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from divsel_ray.data.conversation import BadRow, Message, Role

Fields = Mapping[str, Any]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Names of speakers, in lower case, and their roles."""
_ROLE_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value", "text")
_KINDS = {
    str: "a string",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    Decimal: "a number",
    list: "a list",
    dict: "an object",
}


def read_turns(turns: object, key: str) -> list[Message]:
    """Messages from a list of turns: objects with a role and a text, or strings alternately by user and assistant.

        [{"from": "human", "value": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}]
        ["Hi", "Hello."]
        -> [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

    Args:
        turns: value of the row under a key.
        key: that key.

    Raises:
        BadRow: the value is not a list, or a turn has another shape or an unknown role.
    """
    if not isinstance(turns, list):
        raise BadRow(f"{key} is {kind_of(turns)}, expected a list")
    if turns and isinstance(turns[0], str):
        return [_spoken(turn, place) for place, turn in enumerate(turns)]
    return [_message(turn) for turn in turns]


def has_tool_turns(turns: Sequence[object]) -> bool:
    """Whether any turn calls a tool or has no text, as only OpenAI's format allows."""
    return any(isinstance(turn, Mapping) and (_has_calls(turn) or _is_null(turn)) for turn in turns)


def text_of(fields: Fields, key: str) -> str:
    """The string under a key.

    Raises:
        BadRow: the key is missing, or its value is not a string.
    """
    if key not in fields:
        raise BadRow(f"no key {key}")
    return as_text(fields[key], key)


def as_text(value: object, key: str) -> str:
    """The value, if it is a string.

    Raises:
        BadRow: the value is not a string.
    """
    if not isinstance(value, str):
        raise BadRow(f"{key} is {kind_of(value)}, expected a string")
    return value


def kind_of(value: object) -> str:
    """The JSON type of a value, in words."""
    return "null" if value is None else _KINDS.get(type(value), f"of type {type(value).__name__}")


def first_given(fields: Fields, keys: Sequence[str]) -> str | None:
    """The first of the keys with a value, else the first that is present, else None."""
    for key in keys:
        if fields.get(key) is not None:
            return key
    return next((key for key in keys if key in fields), None)


def _spoken(turn: object, place: int) -> Message:
    return {"role": "assistant" if place % 2 else "user", "content": as_text(turn, "a turn")}


def _message(turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"a turn is {kind_of(turn)}, expected an object")
    key = first_given(turn, _ROLE_KEYS)
    if key is None:
        raise BadRow("no key role or from")
    name = as_text(turn[key], key)
    role = ROLES.get(name) or ROLES.get(name.strip().lower())
    if role is None:
        raise BadRow(f"unknown role {name[:20]!r}")
    return {"role": role, "content": _with_calls(turn) if _has_calls(turn) else _content(turn)}


def _content(turn: Fields) -> str:
    key = first_given(turn, _TEXT_KEYS)
    if key is None:
        raise BadRow("no key content or value")
    value = turn[key]
    return "\n".join(_part(part) for part in value) if isinstance(value, list) else as_text(value, key)


def _part(part: object) -> str:
    if not isinstance(part, Mapping):
        raise BadRow(f"a part of a content is {kind_of(part)}, expected an object")
    if part.get("type") != "text":
        kind = part.get("type")
        named = kind[:20] if isinstance(kind, str) else kind_of(kind)
        raise BadRow(f"a part of a content has the type {named!r}, expected 'text'")
    return text_of(part, "text")


def _has_calls(turn: Fields) -> bool:
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def _is_null(turn: Fields) -> bool:
    return "content" in turn and all(turn.get(key) is None for key in _TEXT_KEYS)


def _with_calls(turn: Fields) -> str:
    """The text of a turn and, after a blank line, its tool calls."""
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadRow(f"tool_calls is {kind_of(calls)}, expected a list")
    call = turn.get("function_call")
    rendered = "\n".join(_rendered(each) for each in [*calls, *([call] if call else [])])
    key = first_given(turn, _TEXT_KEYS)
    text = "" if key is None or turn[key] is None else _content(turn)
    return f"{text}\n\n{rendered}" if text.strip() else rendered


def _rendered(call: object) -> str:
    """A tool call in the form used by Hermes models: JSON between two tags."""
    if not isinstance(call, Mapping):
        raise BadRow(f"a tool call is {kind_of(call)}, expected an object")
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    shown = {"name": text_of(function, "name"), "arguments": _arguments(function.get("arguments"))}
    try:
        return f"<tool_call>\n{json.dumps(shown, ensure_ascii=False, default=_plain)}\n</tool_call>"
    except (TypeError, ValueError, RecursionError):
        raise BadRow("the arguments of a tool call cannot be written as JSON") from None


def _arguments(value: object) -> object:
    if not isinstance(value, str):
        return {} if value is None else value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError
