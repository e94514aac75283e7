"""The interface of scorers, which assign each exchange a number, higher for better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from divsel_ray.errors import one_line
from divsel_ray.models.text import Message

T = TypeVar("T")


@dataclass(frozen=True)
class Exchange:
    """A completion and the conversation it answers.

    Attributes:
        row_id: unique name, which together with the token count determines the order of batching.
        messages: role and content of every message before the completion.
        completion: the assistant's text.
        cut: whether the text was truncated, so that a model need not predict its end.
    """

    row_id: str
    messages: Sequence[Message]
    completion: str
    cut: bool = False


class Scorer(Protocol):
    """Assigns a score to each exchange."""

    problem: str
    """Why the first exchange without a score has none; empty if all have one."""

    signals: dict[str, np.ndarray]
    """Raw numbers behind the last call's scores, each (n,) float64; saved as columns next to the quality."""

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """Scores (n,) float64, higher is better, NaN for exchanges that cannot be scored.

        The result does not depend on the order of the exchanges: batches are cut by (token count, row id).
        """


def encode_each(exchanges: Sequence[Exchange], encode: Callable[[Exchange], T]) -> tuple[dict[int, T], str]:
    """Encode all exchanges except those that cannot be encoded.

    An exchange that a tokenizer or chat template refuses (e.g. for an unknown role) must not end the job.

    Returns:
        {position: encoded} without the refused exchanges, and the error of the first of those ("" if none).
    """
    encoded: dict[int, T] = {}
    problem = ""
    for position, exchange in enumerate(exchanges):
        try:
            encoded[position] = encode(exchange)
        except Exception as error:  # tokenizers and Jinja templates may raise anything
            problem = problem or f"row {exchange.row_id}: {one_line(error)}"
    return encoded, problem
