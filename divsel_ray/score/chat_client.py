"""A client for one call of OpenAI-compatible servers, `POST /chat/completions`, that waits and tries again.

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from divsel_ray.config import JudgeConfig
from divsel_ray.errors import InputError

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, doubled for each further one, and their limit."""
_LONGEST_DELAY = 600.0
"""Seconds of a server's Retry-After that are honoured."""
_TRANSIENT = (408, 409, 425, 429)


@dataclass(frozen=True)
class Answer:
    """What the server answered, and the tokens it counted (None where it did not say)."""

    text: str
    prompt_tokens: int | None
    output_tokens: int | None


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


def find_key(config: JudgeConfig) -> str | None:
    """The key in the environment; None for a server without TLS that needs none.

    Raises:
        InputError: the variable is not set and the server is not a local one.
    """
    key = os.environ.get(config.key_variable, "").strip()
    if not key and config.url.startswith("https:"):
        raise InputError(
            f"judge: the environment variable {config.key_variable} is not set; export the key of {config.url} there "
            "(for a cluster: in the job's runtime environment), or name another variable in key_variable"
        )
    return key or None


class ChatClient:
    """Asks one server; safe for many threads.

    Args:
        config: of the judge.
        pause: called with seconds to wait before a further try.

    Raises:
        InputError: the key is missing (see `find_key`).
    """

    def __init__(self, config: JudgeConfig, pause: Callable[[float], object] = time.sleep) -> None:
        self._config, self._pause, self._key = config, pause, find_key(config)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def wait(self, attempt: int, wait: float | None) -> None:
        """Wait before another try: as long as the server asks, else exponentially with jitter."""
        backoff = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
        # Spread over half to one and a half of it, lest all threads come back at once.
        self._pause(min(wait, _LONGEST_DELAY) if wait is not None else backoff * (0.5 + random.random()))

    def post(self, question: str) -> Answer:
        """Ask once.

        Raises:
            UnavailableError: busy, broken, or too slow: try again.
            RefusedError: the server refuses this request.
            InputError: it refuses the key, or knows no such model or address.
        """
        try:
            with self._opener.open(self._request(question), timeout=self._config.timeout_s) as response:
                return _read_answer(response.read())
        except urllib.error.HTTPError as error:
            raise self._translate(error) from None
        except urllib.error.URLError as error:
            raise UnavailableError(str(error.reason)) from None
        except (TimeoutError, http.client.HTTPException, OSError) as error:
            raise UnavailableError(f"{type(error).__name__}: {error}", billed=True) from None

    def _request(self, question: str) -> urllib.request.Request:
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self._config.max_output_tokens,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        url = f"{self._config.url.rstrip('/')}/chat/completions"
        return urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")

    def _translate(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP error means for the caller; of its text a line, without the key should the server repeat it."""
        code = error.code
        if code in (401, 403):
            return InputError(f"judge: {self._config.url} refuses the key in {self._config.key_variable} (HTTP {code})")
        said = f"HTTP {code}: {self._redacted(error)}"
        if code == 404 or code in range(300, 400):
            return InputError(f"judge: {self._config.url} has no such model or address; model {self._config.model}, {said}")
        if code in _TRANSIENT or code >= 500:
            return UnavailableError(said, _delay(error.headers.get("Retry-After")))
        return RefusedError(said)

    def _redacted(self, error: urllib.error.HTTPError) -> str:
        try:
            text = " ".join(error.read(2000).decode(errors="replace").split())
        except OSError:
            text = ""
        return (text.replace(self._key, "***") if self._key else text)[:200]


def _read_answer(body: bytes) -> Answer:
    try:
        value = json.loads(body)
        text = value["choices"][0]["message"]["content"]
        usage = value.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UnavailableError("the answer is not a chat completion in JSON", billed=True) from None
    prompt, output = (count if isinstance(count, int) and count >= 0 else None for count in counts)
    return Answer(text if isinstance(text, str) else "", prompt, output)


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
