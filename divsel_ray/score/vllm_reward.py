"""Rewards with vLLM: the logits of `RewardModel`, many conversations at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divsel_ray.errors import InputError
from divsel_ray.models.loading import positions_of
from divsel_ray.models.references import resolve_model
from divsel_ray.models.vllm import pooling_engine
from divsel_ray.score.encoding import encode_exchange, fast_tokenizer
from divsel_ray.score.reward_model import check_outputs
from divsel_ray.score.scorer import Exchange, encode_each


class VllmRewardModel:
    """A decoder with one output and a chat template, in a vLLM engine in this process.

    Args:
        model: reward model: local folder, Hugging Face id or package:NAME.
        max_tokens: limit for prompt and completion together; at most the number of positions that the model has.
        batch_tokens: tokens that vLLM processes per step, at least `max_tokens`.
        trust_remote_code: let the model's own Python code run.

    Raises:
        InputError: vLLM is not installed, or the model has several outputs, no chat template, or cannot be loaded.
    """

    def __init__(self, model: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool = False) -> None:
        import torch

        self.problem = ""
        self.signals: dict[str, np.ndarray] = {}
        folder = resolve_model(model)
        config = check_outputs(folder, trust_remote_code=trust_remote_code)
        self._tokenizer = _tokenizer(folder, trust_remote_code)
        self._max_tokens = min(max_tokens, positions_of(config) or max_tokens)
        self._llm = pooling_engine(
            f"reward model {folder}",
            folder,
            dtype="bfloat16" if torch.cuda.is_available() else "float32",
            max_tokens=self._max_tokens,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
        )

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """Raw logits (n,) float64; see `Scorer`. Texts are sent in the order of (tokens, row id), not in the order given."""
        from vllm import PoolingParams

        encoded, problem = encode_each(exchanges, lambda exchange: encode_exchange(self._tokenizer, exchange, self._max_tokens))
        self.problem = self.problem or problem
        places = sorted(encoded, key=lambda place: (len(encoded[place].ids), exchanges[place].row_id))
        prompts = [{"prompt_token_ids": encoded[place].ids} for place in places]
        # Without use_activation=False, vLLM applies a sigmoid.
        outputs = self._llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
        scores = np.full(len(exchanges), np.nan)
        scores[places] = [output.outputs.probs[0] for output in outputs]
        return np.where(np.isfinite(scores), scores, np.nan)


def _tokenizer(folder: str, trust_remote_code: bool) -> object:
    tokenizer = fast_tokenizer(folder, trust_remote_code=trust_remote_code)
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"reward model {folder}: has no chat template, which backend vllm needs; use backend transformers")
    return tokenizer
