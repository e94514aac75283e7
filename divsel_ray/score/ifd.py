"""Instruction-following difficulty (IFD): how little the prompt helps a language model to predict the completion.

    IFD(x, y) = PPL(y | x) / PPL(y) = exp(mean loss of y given x - mean loss of y alone)

Introduced by Li et al. 2024 ("From Quantity to Quality", arXiv 2308.12032) as a ratio of mean losses; the ratio of
perplexities computed here is that of Li et al. 2024 ("Superfiltering", arXiv 2402.00530). Above 1 the prompt does not
help at all, and those papers drop such rows. Here the raw ratio is the quality and no row is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divsel_ray.score.language_model import LanguageModel, Text
from divsel_ray.score.scorer import Exchange, encode_each


class InstructionFollowingDifficulty:
    """IFD under a causal language model; arguments and errors as for `LanguageModel`."""

    def __init__(self, model: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool = False) -> None:
        self.problem = ""
        self.signals: dict[str, np.ndarray] = {}
        self._model = LanguageModel("ifd", model, max_tokens, batch_tokens, trust_remote_code)

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """IFD (n,) float64; see `Scorer`."""
        encoded, problem = encode_each(exchanges, self._encode)
        self.problem = self.problem or problem
        texts = [text for pair in encoded.values() for text in pair]
        names = [f"{exchanges[place].row_id}/{part}" for place in encoded for part in ("given", "alone")]
        losses = self._model.mean_losses(texts, names)
        scores = np.full(len(exchanges), np.nan)
        scores[list(encoded)] = np.exp(losses[0::2] - losses[1::2])
        return np.where(np.isfinite(scores), scores, np.nan)

    def _encode(self, exchange: Exchange) -> tuple[Text, Text]:
        """The completion after its prompt, and after the start token alone."""
        given = self._model.encode(exchange)
        return given, self._model.without_prompt(given)
