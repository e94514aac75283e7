"""A client of JSON servers that waits and retries, shared by judges and embeddings behind an API.

The key is read from the environment of the sending process and appears only in the request's header.
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
"""Seconds before the first retry, doubled for each further one, and their limit."""
_LONGEST_DELAY = 600.0
"""Longest Retry-After of a server that is honoured, in seconds."""
_TRANSIENT = (408, 409, 425, 429)


class Server(Protocol):
    """A server as a section of the configuration describes it: address, model, timeout, and where its key is."""

    @property
    def url(self) -> str:
        """Address of the server, including the API version."""

    @property
    def model(self) -> str:
        """Name of the model on the server."""

    @property
    def key_variable(self) -> str:
        """Environment variable that contains the key; empty to send none."""

    @property
    def timeout_s(self) -> float:
        """Timeout of a request in seconds."""


class RefusedError(Exception):
    """The server will never answer this request, though it may answer others."""


class UnavailableError(Exception):
    """The server did not answer this time.

    Attributes:
        wait: seconds that the server asks to wait, or None.
        billed: whether the request may have been charged nevertheless.
    """

    def __init__(self, reason: str, wait: float | None = None, *, billed: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.billed = billed


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirects, which would send the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return no request: the redirect becomes an HTTP error."""


def find_key(server: Server, what: str) -> str | None:
    """Read the server's key from the environment; None if there is none and the server is not an https:// one.

    Args:
        server: the server that the key is for.
        what: section of the configuration, for messages.

    Raises:
        InputError: an https:// server has no key, or the variable's value cannot be a key.
    """
    key = os.environ.get(server.key_variable, "").strip()
    if not key and server.url.startswith("https:"):
        missing = f"the environment variable {server.key_variable} is not set" if server.key_variable else "key_variable is empty"
        raise InputError(
            f"{what}: {missing}; export the key of {server.url} in a variable (on a cluster: before Ray starts on its nodes), "
            "and name the variable in key_variable"
        )
    # A header accepts nothing else, and the library's error message would repeat the key.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"{what}: the environment variable {server.key_variable} contains no valid key; expected printable ASCII characters "
            "without spaces or line breaks"
        )
    return key or None


class ApiClient:
    """Sends requests to one server; thread-safe.

    Args:
        what: section of the configuration, for messages.
        server: the server.
        pause: called with the seconds to wait before a retry.

    Raises:
        InputError: the key is missing (see `find_key`).
    """

    def __init__(self, what: str, server: Server, pause: Callable[[float], object] = time.sleep) -> None:
        self._what, self._server, self._pause, self._key = what, server, pause, find_key(server, what)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def wait(self, attempt: int, wait: float | None) -> None:
        """Wait before a retry: as long as the server asks, else with exponential backoff and jitter."""
        backoff = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
        # Spread over 0.5 to 1.5 times the backoff, so that the threads do not all retry at once.
        self._pause(min(wait, _LONGEST_DELAY) if wait is not None else backoff * (0.5 + random.random()))

    def try_again(self, call: Callable[[], T], retries: int, stopped: Event) -> T:
        """Return the result of a call, retried up to `retries` times while the server does not answer and `stopped` is not set.

        Raises:
            UnavailableError: the last attempt failed.
        """
        for attempt in range(retries + 1):
            try:
                return call()
            except UnavailableError as error:
                if attempt == retries or stopped.is_set():
                    raise
                wait = error.wait
            self.wait(attempt, wait)
        raise UnavailableError("no retries are left")

    def send(self, path: str, body: Mapping[str, Any]) -> bytes:
        """POST a JSON body once; returns the bytes of the response.

        Raises:
            UnavailableError: the server is busy, broken, or too slow; a retry may succeed.
            RefusedError: the server refuses this request.
            InputError: the server refuses the key, or has no such model or address.
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
        """Translate an HTTP error for the caller, with a line of its text, from which the key is removed."""
        code, server = error.code, self._server
        if code in (401, 403):
            if not self._key:
                return InputError(f"{self._what}: {server.url} requires a key (HTTP {code}); name its variable in key_variable")
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
    """Seconds that a Retry-After header (a number or a date) asks for."""
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
