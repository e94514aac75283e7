"""A client for one endpoint of OpenAI-compatible servers, `POST /chat/completions`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from divsel_ray.config import JudgeConfig
from divsel_ray.models.api_client import ApiClient, UnavailableError

SECTION = "judge"


@dataclass(frozen=True)
class Answer:
    """The server's answer and the tokens it counted (None if it did not report them)."""

    text: str
    prompt_tokens: int | None
    output_tokens: int | None


class ChatClient(ApiClient):
    """Sends questions to one server; thread-safe.

    Args:
        config: settings of the judge.
        pause: called with the seconds to wait before a retry.

    Raises:
        InputError: the key is missing (see `models.api_client.find_key`).
    """

    def __init__(self, config: JudgeConfig, pause: Callable[[float], object] = time.sleep) -> None:
        super().__init__(SECTION, config, pause)
        self._config = config

    def post(self, question: str) -> Answer:
        """Ask once; raises the same errors as `ApiClient.send`."""
        config = self._config
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": question}],
            config.limit_field: config.max_output_tokens,
            **({} if config.temperature is None else {"temperature": config.temperature}),
        }
        return _read_answer(self.send("chat/completions", body))


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
