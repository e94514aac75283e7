"""A server on this machine that speaks both embedding protocols, as badly as a test wants."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DIMENSION = 4


@dataclass
class Reply:
    """How a request is answered: a status, headers, and a body instead of the right one."""

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass
class Seen:
    """What the server was asked."""

    url: str
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    busiest: int = 0

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
    lock, open_requests = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.bodies)
                seen.bodies.append(body)
                seen.keys.append(self.headers.get("Authorization"))
                seen.paths.append(self.path)
                open_requests[0] += 1
                seen.busiest = max(seen.busiest, open_requests[0])
            how = reply(number)
            time.sleep(how.delay)
            with lock:
                open_requests[0] -= 1
            content = answer(self.path, body) if how.body is None else how.body
            with contextlib.suppress(OSError):
                self.send_response(how.status)
                for name, value in {"Content-Length": str(len(content)), **how.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen = Seen(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
