"""What a scorer is: something that gives each exchange a number, higher for better."""

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
        row_id: unique name; with the token count it fixes the order in which exchanges are batched.
        messages: role and content of every message before the completion.
        completion: the assistant's text.
        cut: whether the text goes on where it was cut off: its end is no end that a model is to predict.
    """

    row_id: str
    messages: Sequence[Message]
    completion: str
    cut: bool = False


class Scorer(Protocol):
    """Gives exchanges a score each."""

    problem: str
    """Why the first exchange without a score has none; empty while all have one."""

    signals: dict[str, np.ndarray]
    """Raw numbers behind the last call's scores, each (n,) float64; kept as columns beside the quality."""

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """Scores (n,) float64, higher is better, NaN where an exchange cannot be scored.

        The result does not depend on the order of the exchanges: batches are cut by (token count, row id).
        """


def encode_each(exchanges: Sequence[Exchange], encode: Callable[[Exchange], T]) -> tuple[dict[int, T], str]:
    """Encode what can be encoded.

    One exchange that a tokenizer or chat template refuses (a role it does not know, say) must not end the job.

    Returns:
        {position: encoded} without the refused ones, and what was wrong with the first of those ("" if none).
    """
    encoded: dict[int, T] = {}
    problem = ""
    for position, exchange in enumerate(exchanges):
        try:
            encoded[position] = encode(exchange)
        except Exception as error:  # tokenizers and Jinja templates raise anything
            problem = problem or f"row {exchange.row_id}: {one_line(error)}"
    return encoded, problem
