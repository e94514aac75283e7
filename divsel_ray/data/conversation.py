"""Conversations, in the canonical form used by the rest of the program.

A conversation is a list of messages `{"role": ..., "content": ...}` with the roles system, user, assistant and tool. It
contains a user message and ends with the assistant message that a model is trained to write. Everything before the last
message is the prompt; the last message is the completion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypedDict

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))

Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict):
    """One turn."""

    role: Role
    content: str


class BadRow(Exception):  # noqa: N818
    """A row that cannot become a conversation.

    Attributes:
        reason: why not.
        kind: the reason in generic words shared by many rows, for counting.
    """

    def __init__(self, reason: str, kind: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind or reason


def row_id(messages: Sequence[Message]) -> str:
    """The identity of a conversation: 128-bit BLAKE2b of its canonical JSON, 32 hex digits.

    It depends on roles and contents only, so the same conversation has the same id in every file, format and run.
    """
    plain = [{"content": message["content"], "role": message["role"]} for message in messages]
    return hashlib.blake2b(_CANONICAL.encode(plain).encode(), digest_size=16).hexdigest()


def canonicalise(messages: Sequence[Message], turns: Literal["all", "first"] = "all") -> list[Message]:
    """The part of a conversation that can be trained on.

    `all` drops messages between the system messages and the first user message (answers without a question) and those
    after the last assistant message (questions without an answer). `first` keeps the system messages and the first user
    message that is directly followed by an assistant message, both non-blank.

        system S, assistant A0, user U1, assistant A1, user U2
        -> all and first: system S, user U1, assistant A1

    Raises:
        BadRow: no user message with a reply is left, the last reply is blank, or a text contains characters that UTF-8 or
            a tokenizer cannot represent.
    """
    for message in messages:
        _check_text(message["content"])
    return _first_exchange(messages) if turns == "first" else _whole(messages)


def check_length(messages: Sequence[Message], max_chars: int) -> None:
    """Raise if the contents of a conversation are longer than `max_chars` in total.

    Raises:
        BadRow: they are longer.
    """
    length = sum(len(message["content"]) for message in messages)
    if length > max_chars:
        raise BadRow(f"{length:,} characters, at most {max_chars:,}", kind=f"more than {max_chars:,} characters")


def prompt_text(messages: Sequence[Message]) -> str:
    """All non-blank contents before the last message, joined by blank lines."""
    return "\n\n".join(message["content"] for message in messages[:-1] if message["content"].strip())


def completion_text(messages: Sequence[Message]) -> str:
    """The content of the last message."""
    return messages[-1]["content"]


def _whole(messages: Sequence[Message]) -> list[Message]:
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise BadRow("no user turn with a reply")
    first = roles.index("user")
    kept = [message for message in messages[:first] if message["role"] == "system"] + list(messages[first:])
    while kept and kept[-1]["role"] != "assistant":
        kept.pop()
    if not any(message["role"] == "user" and message["content"].strip() for message in kept):
        raise BadRow("no user turn with a reply")
    if not kept[-1]["content"].strip():
        raise BadRow("the last assistant turn is blank")
    return kept


def _first_exchange(messages: Sequence[Message]) -> list[Message]:
    for position, (turn, reply) in enumerate(pairwise(messages)):
        exchange = turn["role"] == "user" and reply["role"] == "assistant"
        if exchange and turn["content"].strip() and reply["content"].strip():
            return [*(message for message in messages[:position] if message["role"] == "system"), turn, reply]
    raise BadRow("no user turn with a reply")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise BadRow("a text contains a NUL character")
    # Encoding is Python's fastest test for lone surrogates.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("a text contains a lone surrogate, which is not valid Unicode") from None
