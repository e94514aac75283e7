"""A server on this machine that speaks the chat protocol, as badly as a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """A status, headers, and a body or the text of a well-formed answer."""

    text: str = "Rating: 7"
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    prompt_tokens: int | None = 100
    delay: float = 0.0

    def encoded(self) -> bytes:
        if self.body is not None:
            return self.body
        usage = {} if self.prompt_tokens is None else {"prompt_tokens": self.prompt_tokens, "completion_tokens": 10}
        return json.dumps({"choices": [{"message": {"content": self.text}}], "usage": usage}).encode()


@dataclass
class Seen:
    """What the server was asked."""

    url: str
    questions: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    busiest: int = 0


@contextlib.contextmanager
def chat_server(answer: Callable[[str, int], Reply]) -> Iterator[Seen]:
    """Answer each question by `answer(question, times asked before)`."""
    lock, open_requests = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][0]["content"]
            with lock:
                before = seen.questions.count(question)
                seen.questions.append(question)
                seen.bodies.append(body)
                seen.keys.append(self.headers.get("Authorization"))
                seen.paths.append(self.path)
                open_requests[0] += 1
                seen.busiest = max(seen.busiest, open_requests[0])
            reply = answer(question, before)
            time.sleep(reply.delay)
            with lock:
                open_requests[0] -= 1
            with contextlib.suppress(OSError):
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.encoded())), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.encoded())

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
