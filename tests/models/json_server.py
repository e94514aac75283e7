"""A server on this machine that is asked in JSON, and answers as badly as a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar


@dataclass(kw_only=True)
class Reply:
    """How a request is answered: a status, headers, and a body, None being the right one."""

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass
class Seen:
    """What the server was asked, and the most requests at once."""

    url: str = ""
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    busiest: int = 0


R = TypeVar("R", bound=Reply)


@contextlib.contextmanager
def json_server(seen: Seen, answer: Callable[[int], R], right: Callable[[int, R], bytes]) -> Iterator[None]:
    """Answer POST requests at `seen.url`.

    Args:
        seen: is told of every request.
        answer: how the request of a number is answered.
        right: the body of the right answer to it.
    """
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
            reply = answer(number)
            time.sleep(reply.delay)
            with lock:
                open_requests[0] -= 1
            content = right(number, reply) if reply.body is None else reply.body
            with contextlib.suppress(OSError):
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
