"""A client of JSON servers that waits and tries again: what judges and embeddings behind an API have in common.

The key is read from the environment, in the process that sends, and goes nowhere but into the request's header.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any, Protocol, TypeVar

from divsel_ray.errors import InputError

T = TypeVar("T")
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, doubled for each further one, and their limit."""
_LONGEST_DELAY = 600.0
"""Seconds of a server's Retry-After that are honoured."""
_TRANSIENT = (408, 409, 425, 429)


class Server(Protocol):
    """What a section of the configuration says of a server: its address, model, patience, and where its key is."""

    @property
    def url(self) -> str:
        """The server, up to and with its version."""

    @property
    def model(self) -> str:
        """The model's name there."""

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key; empty where none is to be sent."""

    @property
    def timeout_s(self) -> float:
        """Seconds that a request may take."""


class RefusedError(Exception):
    """The server will never answer this request; others it may."""


class UnavailableError(Exception):
    """The server did not answer this time.

    Attributes:
        wait: seconds it asks to wait, or None.
        billed: whether it may have charged for the request all the same.
    """

    def __init__(self, reason: str, wait: float | None = None, *, billed: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.billed = billed


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: it becomes an HTTP error."""


def find_key(server: Server, what: str) -> str | None:
    """The key in the environment; None for a server without TLS that needs none, or that is not to be sent one.

    Args:
        server: whose key it is.
        what: section of the configuration, for messages.

    Raises:
        InputError: there is none and the server is an https:// one, or the variable holds what cannot be a key.
    """
    key = os.environ.get(server.key_variable, "").strip()
    if not key and server.url.startswith("https:"):
        missing = f"the environment variable {server.key_variable} is not set" if server.key_variable else "key_variable is empty"
        raise InputError(
            f"{what}: {missing}; export the key of {server.url} in a variable (on a cluster: before Ray starts on its nodes), "
            "and name that in key_variable"
        )
    # No header takes anything else; the error that says so would repeat the key.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"{what}: the environment variable {server.key_variable} holds no key: expected printable ASCII characters without "
            "spaces and line breaks"
        )
    return key or None


class ApiClient:
    """Asks one server; safe for many threads.

    Args:
        what: section of the configuration, for messages.
        server: where to ask.
        pause: called with seconds to wait before a further try.

    Raises:
        InputError: the key is missing (see `find_key`).
    """

    def __init__(self, what: str, server: Server, pause: Callable[[float], object] = time.sleep) -> None:
        self._what, self._server, self._pause, self._key = what, server, pause, find_key(server, what)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def wait(self, attempt: int, wait: float | None) -> None:
        """Wait before another try: as long as the server asks, else exponentially with jitter."""
        backoff = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
        # Spread over half to one and a half of it, lest all threads come back at once.
        self._pause(min(wait, _LONGEST_DELAY) if wait is not None else backoff * (0.5 + random.random()))

    def try_again(self, call: Callable[[], T], retries: int, stopped: Event) -> T:
        """What a call returns, made again up to `retries` times while the server does not answer and nobody stops it.

        Raises:
            UnavailableError: the last try's.
        """
        for attempt in range(retries + 1):
            try:
                return call()
            except UnavailableError as error:
                if attempt == retries or stopped.is_set():
                    raise
                wait = error.wait
            self.wait(attempt, wait)
        raise UnavailableError("no try is left")

    def send(self, path: str, body: Mapping[str, Any]) -> bytes:
        """POST a JSON body once; the answer's bytes.

        Raises:
            UnavailableError: busy, broken, or too slow: try again.
            RefusedError: the server refuses this request.
            InputError: it refuses the key, or knows no such model or address.
        """
        try:
            with self._opener.open(self._request(path, body), timeout=self._server.timeout_s) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise self._translate(error) from None
        except urllib.error.URLError as error:
            raise UnavailableError(str(error.reason)) from None
        except (TimeoutError, http.client.HTTPException, OSError) as error:
            raise UnavailableError(f"{type(error).__name__}: {error}", billed=True) from None

    def _request(self, path: str, body: Mapping[str, Any]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        url = f"{self._server.url.rstrip('/')}/{path}"
        return urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")

    def _translate(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP error means for the caller; of its text a line, without the key should the server repeat it."""
        code, server = error.code, self._server
        if code in (401, 403):
            if not self._key:
                return InputError(f"{self._what}: {server.url} wants a key (HTTP {code}); name its variable in key_variable")
            return InputError(f"{self._what}: {server.url} refuses the key in {server.key_variable} (HTTP {code})")
        said = f"HTTP {code}: {self._redacted(error)}"
        if code == 404 or code in range(300, 400):
            return InputError(f"{self._what}: {server.url} has no such model or address; model {server.model}, {said}")
        if code in _TRANSIENT or code >= 500:
            return UnavailableError(said, _delay(error.headers.get("Retry-After")))
        return RefusedError(said)

    def _redacted(self, error: urllib.error.HTTPError) -> str:
        try:
            text = " ".join(error.read(2000).decode(errors="replace").split())
        except OSError:
            text = ""
        return (text.replace(self._key, "***") if self._key else text)[:200]


def _delay(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
