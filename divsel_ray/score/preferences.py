"""Preference pairs without annotators: a prompt's own completion against three corrupted ones.

    other_prompt  another prompt's completion               teaches relevance
    truncated     the first 20 to 70 % of the words         teaches completeness
    shuffled      its words or sentences in random order    teaches coherence

Every draw is seeded by the row's id, so the pairs do not depend on the order of the rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from divsel_ray.score.scorer import Exchange

KINDS = ("other_prompt", "truncated", "shuffled")


@dataclass(frozen=True)
class Comparison:
    """A prompt with its own completion and the corrupted ones by kind; a kind that changes nothing is left out."""

    chosen: Exchange
    rejected: dict[str, Exchange]


def make_comparisons(exchanges: Sequence[Exchange], seed: int) -> list[Comparison]:
    """Make one comparison per exchange, in row id order.

    The other prompt's completion comes from the next row of a seeded order, so that every completion is preferred once and
    rejected once for its prompt, and nothing can be learned from completions alone.
    """
    rows = sorted(exchanges, key=lambda exchange: exchange.row_id)
    drawn = sorted(rows, key=lambda exchange: draw(seed, "other_prompt", exchange.row_id))
    following = dict(zip((row.row_id for row in drawn), [*drawn[1:], drawn[0]], strict=True))
    return [_compare(row, following[row.row_id].completion, seed) for row in rows]


def draw(seed: int, purpose: str, row_id: str) -> int:
    """A uniform 64-bit hash of seed, purpose and row id, independent of the row's position."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}:{row_id}".encode()).digest()[:8], "big")


def truncated(text: str, generator: np.random.Generator) -> str:
    """The first 20 to 70 % of the words, at least one."""
    words = list(re.finditer(r"\S+", text))
    if len(words) < 2:
        return text
    return text[: words[max(1, int(len(words) * generator.uniform(0.2, 0.7))) - 1].end()]


def shuffled(text: str, generator: np.random.Generator) -> str:
    """Shuffle the words or, half the time if there are several, the sentences; white space stays in place.

    (Layout must not reveal the shuffling to tokenizers that encode it.)
    """
    by_sentence = re.split(r"((?<=[.!?])\s+)", text.strip())
    several = len(by_sentence) >= 5
    pieces = by_sentence if several and generator.random() < 0.5 else re.split(r"(\s+)", text.strip())
    parts = pieces[0::2]
    pieces[0::2] = [parts[index] for index in generator.permutation(len(parts))]
    return "".join(pieces)


def _compare(row: Exchange, other: str, seed: int) -> Comparison:
    completions = {
        "other_prompt": other,
        "truncated": truncated(row.completion, _generator(seed, "truncated", row)),
        "shuffled": shuffled(row.completion, _generator(seed, "shuffled", row)),
    }
    # Compared without layout: the words must differ, not only the line breaks.
    changed = {kind: text for kind, text in completions.items() if text.split() != row.completion.split()}
    return Comparison(row, {kind: replace(row, completion=text) for kind, text in changed.items()})


def _generator(seed: int, purpose: str, row: Exchange) -> np.random.Generator:
    return np.random.default_rng(draw(seed, purpose, row.row_id))
