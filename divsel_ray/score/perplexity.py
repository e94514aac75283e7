"""Perplexity of a completion given its prompt, under a given language model; the prompt's own tokens do not count.

    log PPL(y | x) = - mean over the tokens of y of log p(token | x, tokens before)        in nats

Yu et al. 2024, Eq. 7 uses it in place of the reward: S = log PPL(x (+) y_gold) - log PPL(x (+) y_gen). There the score is log
PPL itself, and with `direction: lagging` text that the model finds strange has a higher weight, including corrupted rows.
As a quality the sign is reversed to minus log PPL, so that fluent text has a higher weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divsel_ray.score.language_model import LanguageModel
from divsel_ray.score.scorer import Exchange, encode_each


class Perplexity:
    """Log perplexity, or minus log perplexity, under a causal language model; errors as for `LanguageModel`.

    Args:
        sign: 1 for log PPL (Eq. 7), -1 for minus log PPL.
        model, max_tokens, batch_tokens, trust_remote_code: as for `LanguageModel`.
    """

    def __init__(self, sign: float, model: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool = False) -> None:
        self.problem = ""
        self.signals: dict[str, np.ndarray] = {}
        self._sign = sign
        self._model = LanguageModel("perplexity", model, max_tokens, batch_tokens, trust_remote_code)

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """`sign` x log perplexity in nats, (n,) float64; see `Scorer`."""
        encoded, problem = encode_each(exchanges, self._model.encode)
        self.problem = self.problem or problem
        scores = np.full(len(exchanges), np.nan)
        names = [exchanges[place].row_id for place in encoded]
        scores[list(encoded)] = self._sign * self._model.mean_losses(list(encoded.values()), names)
        return np.where(np.isfinite(scores), scores, np.nan)
