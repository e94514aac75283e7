"""A server on this machine that speaks both embedding protocols, as badly as a test wants."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator

from tests.models import json_server
from tests.models.json_server import Reply

DIMENSION = 4


class Seen(json_server.Seen):
    """What the server was asked."""

    @property
    def texts(self) -> list[str]:
        """All texts that were sent, in the order of the requests."""
        return [text for body in self.bodies for text in body.get("input", body.get("texts"))]


def vector_of(text: str) -> list[float]:
    """What the server says of a text: the same each time, and of no particular length."""
    return [1.0 + byte / 64 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSION]]


def answer(path: str, body: dict) -> bytes:
    """The right answer: a token for each word. OpenAI's protocol numbers its vectors, and they come in any order."""
    texts = body.get("input", body.get("texts"))
    tokens = sum(len(text.split()) for text in texts)
    if path.endswith("/embeddings"):
        data = [{"index": at, "embedding": vector_of(text)} for at, text in enumerate(texts)][::-1]
        return json.dumps({"data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}).encode()
    vectors = {"float": [vector_of(text) for text in texts]}
    return json.dumps({"embeddings": vectors, "meta": {"billed_units": {"input_tokens": tokens}}}).encode()


@contextlib.contextmanager
def embed_server(reply: Callable[[int], Reply] = lambda number: Reply()) -> Iterator[Seen]:
    """Answer the requests by `reply(number of the request)`."""
    seen = Seen()
    with json_server.json_server(seen, reply, lambda number, _: answer(seen.paths[number], seen.bodies[number])):
        yield seen
