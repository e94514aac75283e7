"""transformers' own `generate`, batch by batch: slower than vLLM, but runs everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from divsel_ray.config import GenerateConfig
from divsel_ray.generate.engine import Completion
from divsel_ray.generate.trained import check_same_weights, split_trained

_BATCH = 16
_STOP_TOKENS = 8
"""Number of last tokens searched for a stop string; more than any stop string has."""


class TransformersEngine:
    """One model in this process, with adapters loaded and unloaded per call."""

    def __init__(self, model: str, config: GenerateConfig, tokenizer: Any, stop: list[str], *, trusted: bool = False) -> None:
        import torch

        self._torch, self._config, self._tokenizer, self._stop = torch, config, tokenizer, stop
        self._trusted = trusted
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._base = self._loaded = model
        self._model = self._load(model)

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], trained: str | None) -> list[Completion]:
        """Complete prompts in batches of 16, in the given order."""
        from peft import PeftModel

        weights, adapter = split_trained(self._base, trained)
        self._use(weights)
        model = self._model if adapter is None else PeftModel.from_pretrained(self._model, adapter).eval()
        try:
            batches = [slice(start, start + _BATCH) for start in range(0, len(prompts), _BATCH)]
            return [completion for part in batches for completion in self._complete(model, prompts[part], seeds[part])]
        finally:
            if adapter is not None:
                self._model = model.unload()

    def _load(self, folder: str) -> Any:
        from transformers import AutoModelForCausalLM, GenerationConfig

        device = "cuda" if self._torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self._config.dtype, trust_remote_code=self._trusted)
        # vLLM would ignore the model's other generation settings, such as a repetition penalty.
        model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
        return model.to(device).eval()

    def _use(self, weights: str) -> None:
        if weights == self._loaded:
            return
        if weights != self._base:
            check_same_weights(self._base, weights)
        # The old weights are freed first: memory may not suffice for both.
        self._model, self._loaded = None, ""
        self._model, self._loaded = self._load(weights), weights

    def _complete(self, model: Any, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Completion]:
        padded = self._tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt").to(model.device)
        start = padded["input_ids"].shape[1]
        with self._torch.inference_mode():
            output = model.generate(
                **padded,
                max_new_tokens=self._config.max_new_tokens,
                do_sample=False,
                logits_processor=[self._sample(seeds)] if self._config.temperature > 0 else [],
                stopping_criteria=[self._stop_after(start)] if self._stop else [],
                pad_token_id=self._tokenizer.pad_token_id,
            )
        return [self._read(ids) for ids in output[:, start:].tolist()]

    def _sample(self, seeds: Sequence[int]) -> Callable[..., Any]:
        """A processor of logits after which the largest is a draw from softmax(logits / temperature): the Gumbel-max trick.

        Each row has its own generator, so that a completion does not depend on its batch, as it would with `do_sample`.
        """
        from transformers import TopPLogitsWarper

        generators = [self._torch.Generator().manual_seed(seed) for seed in seeds]
        likeliest = TopPLogitsWarper(self._config.top_p)

        def perturbed(ids: Any, scores: Any) -> Any:
            """Scores (n, vocabulary) with Gumbel noise."""
            kept = likeliest(ids, scores.float() / self._config.temperature)
            uniform = self._torch.stack([self._torch.rand(scores.shape[1], generator=generator) for generator in generators])
            return kept - self._torch.log(-self._torch.log(uniform.clamp(1e-20, 1 - 2**-24))).to(kept.device)

        return perturbed

    def _stop_after(self, start: int) -> Callable[..., Any]:
        """A criterion that ends a row once a stop string occurs after its first `start` tokens (the prompt)."""

        def reached(ids: Any, scores: Any, **_: Any) -> Any:
            """Whether each row of token ids has ended, (n,) bool."""
            tails = self._tokenizer.batch_decode(ids[:, start:][:, -_STOP_TOKENS:])
            ends = [any(stop in tail for stop in self._stop) for tail in tails]
            return self._torch.tensor(ends, device=ids.device)

        return reached

    def _read(self, ids: list[int]) -> Completion:
        ends = {self._tokenizer.eos_token_id, self._tokenizer.pad_token_id}
        length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        text = self._tokenizer.decode(ids[:length], skip_special_tokens=True)
        cuts = [at for at in map(text.find, self._stop) if at >= 0]
        finished = length < self._config.max_new_tokens or bool(cuts)
        return Completion(text[: min(cuts)] if cuts else text, length, "stop" if finished else "length")
