"""Rewards of a sequence-classification model: one raw logit for a whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divsel_ray.errors import InputError
from divsel_ray.models.batching import token_batches
from divsel_ray.models.loading import loading
from divsel_ray.models.references import resolve_model
from divsel_ray.score.encoding import Encoded, collate, encode_exchange, fast_tokenizer, position_limit
from divsel_ray.score.scorer import Exchange, encode_each


class RewardModel:
    """A transformers model with one output, on the GPU if there is one (bfloat16), else on the CPU (float32).

    Args:
        model: reward model: local folder, Hugging Face id or package:NAME.
        max_tokens: limit for prompt and completion together; at most the number of positions that the model has.
        batch_tokens: padded tokens per batch.
        trust_remote_code: let the model's own Python code run.

    Raises:
        InputError: the model cannot be loaded, has more than one output, or no trained output layer.
    """

    def __init__(self, model: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool = False) -> None:
        import torch

        folder = resolve_model(model)
        self.problem = ""
        self.signals: dict[str, np.ndarray] = {}
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer, self._model = _load(folder, self._device, trust_remote_code)
        self._config = self._model.config.get_text_config()
        self._padding = self._config.pad_token_id
        self._max_tokens = min(max_tokens, position_limit(self._model))
        self._batch_tokens = batch_tokens

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """Raw logits (n,) float64; see `Scorer`."""
        encoded, problem = encode_each(exchanges, lambda exchange: encode_exchange(self._tokenizer, exchange, self._max_tokens))
        self.problem = self.problem or problem
        scores = np.full(len(exchanges), np.nan)
        places = np.array(list(encoded), dtype=int)
        lengths = [len(item.ids) for item in encoded.values()]
        for batch in token_batches(lengths, [exchanges[place].row_id for place in places], self._batch_tokens):
            scores[places[batch]] = self._forward([encoded[place] for place in places[batch]])
        return np.where(np.isfinite(scores), scores, np.nan)

    def _forward(self, batch: list[Encoded]) -> np.ndarray:
        import torch

        inputs = collate(self._tokenizer, batch, self._choose_padding(batch))
        inputs = {name: values.to(self._device) for name, values in inputs.items()}
        with torch.inference_mode():
            return np.asarray(self._model(**inputs).logits[:, 0].float().cpu().numpy(), dtype=np.float64)

    def _choose_padding(self, batch: list[Encoded]) -> int:
        """The model's padding id, or one that no text of the batch contains.

        Decoders read their score at the last token that is not padding. Those trained without a padding token read it
        at the very last one, which is often the end-of-turn token: padding with that token would move the position.
        """
        if self._padding is not None:
            return int(self._padding)
        used = {token for item in batch for token in item.ids}
        padding = next(token for token in range(len(used) + 1) if token not in used)
        self._config.pad_token_id = padding
        return padding


def check_outputs(folder: str, *, trust_remote_code: bool = False) -> Any:
    """Load a model's configuration and check that the model has one output.

    Raises:
        InputError: the configuration cannot be loaded, or the model has several outputs.
    """
    from transformers import AutoConfig

    with loading(f"reward model {folder}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if config.num_labels != 1:
        raise InputError(f"reward model {folder}: has {config.num_labels} outputs; a reward model has one (num_labels 1)")
    return config


def _load(folder: str, device: str, trust_remote_code: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification

    config = check_outputs(folder, trust_remote_code=trust_remote_code)
    with loading(f"reward model {folder}"):
        tokenizer = fast_tokenizer(folder, trust_remote_code=trust_remote_code)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    # transformers initialises missing weights at random and continues: the scores would be meaningless.
    if report["missing_keys"]:
        raise InputError(
            f"reward model {folder}: weights are missing ({min(report['missing_keys'])}); it is not a trained reward model"
        )
    return tokenizer, model.to(device).eval()
