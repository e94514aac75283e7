"""DEITA's two scores (Liu et al. 2024, "What Makes Good Data for Alignment?", arXiv 2312.15685, sec. 2.2 and 2.3).

Two language models were trained to continue a fixed question with a digit, 1 to 6: one for the complexity of an
instruction, one for the quality of its response. A score is the expected digit under the softmax of the six digits'
logits. A turn's score is the product of the two, a row's the sum over its turns, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divsel_ray.errors import InputError
from divsel_ray.score.language_model import LanguageModel
from divsel_ray.score.scorer import Exchange, encode_each

COMPLEXITY_MODEL = "hkust-nlp/deita-complexity-scorer"
QUALITY_MODEL = "hkust-nlp/deita-quality-scorer"

# The questions are part of the models: they were trained with exactly these, blanks included.
_COMPLEXITY = (
    "You are a helpful assistant. Please identify the complexity score of the following user query. \n##Query: ",
    "  \n##Complexity: ",
)
_QUALITY = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. \n"
    " #Question#:\n",
    "\n#Response#:\n",
    " \n##Quality: ",
)
_DIGITS = "123456"

Turn = tuple[str, str]
"""An instruction and its response."""


class DigitModel:
    """A language model that answers a question with a digit; arguments and errors are those of `LanguageModel`.

    Raises:
        InputError: also if the tokenizer has no single token for a digit.
    """

    def __init__(self, model: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool = False) -> None:
        self._model = LanguageModel("deita", model, max_tokens, batch_tokens, trust_remote_code)
        tokenizer = self._model.tokenizer
        self._digits = [tokenizer.convert_tokens_to_ids(digit) for digit in _DIGITS]
        if any(token is None or token == tokenizer.unk_token_id for token in self._digits):
            raise InputError(f"deita model {model}: its tokenizer has no token of its own for each of the digits 1 to 6")

    def encode(self, frame: Sequence[str], parts: Sequence[str]) -> list[int]:
        """Token ids of `frame[0] parts[0] frame[1] parts[1] ...`; if too long, the longest part is cut at its end.

        Raises:
            ValueError: the frame alone is too long.
        """
        tokenizer, room = self._model.tokenizer, self._model.max_tokens
        while True:
            text = "".join(piece for pair in zip(frame, [*parts, ""], strict=True) for piece in pair)
            ids = list(tokenizer(text).input_ids)
            longest = max(range(len(parts)), key=lambda at: len(parts[at]))
            if len(ids) <= room:
                return ids
            if not parts[longest]:
                raise ValueError(f"the question alone has more than {room} tokens")
            # Characters do not map evenly to tokens: cut in proportion, and check again.
            kept = min(len(parts[longest]) - 1, int(len(parts[longest]) * room / len(ids)))
            parts = [*parts[:longest], parts[longest][:kept], *parts[longest + 1 :]]

    def expect(self, questions: Sequence[list[int]], names: Sequence[str]) -> np.ndarray:
        """Expected digit after each question, (n,) float64 in 1..6; NaN where the logits are NaN."""
        logits = self._model.next_logits(questions, names, self._digits)
        odds = np.exp(logits - logits.max(axis=1, initial=-np.inf, keepdims=True))
        return np.asarray((odds * np.arange(1, len(_DIGITS) + 1)).sum(axis=1) / odds.sum(axis=1))


class Deita:
    """Complexity times response quality, summed over the turns; `signals` contains the means over the turns.

    Errors are those of `DigitModel`.

    Args:
        complexity: language model that rates instructions.
        quality: language model that rates responses.
        max_tokens, batch_tokens, trust_remote_code: as for `LanguageModel`.
    """

    def __init__(
        self, complexity: str, quality: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool = False
    ) -> None:
        self.problem = ""
        self.signals: dict[str, np.ndarray] = {}
        limits = (max_tokens, batch_tokens, trust_remote_code)
        self._complexity, self._quality = DigitModel(complexity, *limits), DigitModel(quality, *limits)

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """Sum over turns of complexity x quality, (n,) float64; see `Scorer`."""
        encoded, problem = encode_each(exchanges, self._encode)
        self.problem = self.problem or problem
        place = np.array([at for at, pairs in encoded.items() for _ in pairs], dtype=int)
        names = [f"{exchanges[at].row_id}/{turn}" for at, pairs in encoded.items() for turn in range(len(pairs))]
        pairs = [pair for found in encoded.values() for pair in found]
        complexity = self._complexity.expect([pair[0] for pair in pairs], names)
        quality = self._quality.expect([pair[1] for pair in pairs], names)
        turns = np.bincount(place, minlength=len(exchanges))
        sums = [np.bincount(place, one, len(exchanges)) for one in (complexity, quality, complexity * quality)]
        with np.errstate(invalid="ignore"):
            self.signals = {"complexity": sums[0] / turns, "response_quality": sums[1] / turns}
        return np.where((turns > 0) & np.isfinite(sums[2]), sums[2], np.nan)

    def _encode(self, exchange: Exchange) -> list[tuple[list[int], list[int]]]:
        """Encode the two questions about every turn."""
        return [
            (self._complexity.encode(_COMPLEXITY, [instruction]), self._quality.encode(_QUALITY, [instruction, response]))
            for instruction, response in turns_of(exchange)
        ]


def turns_of(exchange: Exchange) -> list[Turn]:
    """Pair every assistant message with the user message before it; all other messages are left out.

    Raises:
        ValueError: there is no such pair.
    """
    turns: list[Turn] = []
    instruction: str | None = None
    for message in [*exchange.messages, {"role": "assistant", "content": exchange.completion}]:
        if message["role"] == "user":
            instruction = message["content"]
        elif message["role"] == "assistant" and instruction is not None:
            turns.append((instruction, message["content"]))
            instruction = None
    if not turns:
        raise ValueError("no user message with a reply")
    return turns
