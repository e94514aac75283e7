"""A server on this machine that speaks the chat protocol, as badly as a test wants."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.models import json_server


@dataclass
class Reply(json_server.Reply):
    """How a question is answered; the right body holds this text and counts these tokens, if any."""

    text: str = "Rating: 7"
    prompt_tokens: int | None = 100

    def encoded(self) -> bytes:
        usage = {} if self.prompt_tokens is None else {"prompt_tokens": self.prompt_tokens, "completion_tokens": 10}
        return json.dumps({"choices": [{"message": {"content": self.text}}], "usage": usage}).encode()


class Seen(json_server.Seen):
    """What the server was asked."""

    @property
    def questions(self) -> list[str]:
        """In the order in which they came."""
        return [body["messages"][0]["content"] for body in self.bodies]


@contextlib.contextmanager
def chat_server(answer: Callable[[str, int], Reply]) -> Iterator[Seen]:
    """Answer each question by `answer(question, times asked before)`."""
    seen = Seen()

    def reply(number: int) -> Reply:
        *before, question = seen.questions[: number + 1]
        return answer(question, before.count(question))

    with json_server.json_server(seen, reply, lambda _, reply: reply.encoded()):
        yield seen
