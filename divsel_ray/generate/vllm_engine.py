"""vLLM's offline engine in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from divsel_ray.config import GenerateConfig
from divsel_ray.errors import InputError
from divsel_ray.generate.engine import Completion
from divsel_ray.generate.trained import check_same_weights, split_trained
from divsel_ray.models.vllm import prepare_vllm

_MAX_SEQUENCES = 256
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for the largest rank of adapters."""


class VllmEngine:
    """One `vllm.LLM`, started once; weights are replaced in place."""

    def __init__(self, model: str, config: GenerateConfig, stop: list[str], lora_rank: int, *, trusted: bool = False) -> None:
        prepare_vllm()
        import torch
        from vllm import LLM

        self._base = self._loaded = model
        self._config, self._stop, self._adapters = config, stop, 0
        device = {} if torch.cuda.is_available() else {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)}
        adapters = {"enable_lora": True, "max_lora_rank": settable_rank(lora_rank), "max_loras": 1} if lora_rank else {}
        self._llm = LLM(
            model,
            dtype=config.dtype,
            max_model_len=config.max_prompt_tokens + config.max_new_tokens,
            max_num_seqs=min(config.shard_size * config.samples, _MAX_SEQUENCES),
            enforce_eager=not torch.cuda.is_available(),
            seed=0,
            trust_remote_code=trusted,
            disable_log_stats=True,
            **adapters,
            **device,
        )

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], trained: str | None) -> list[Completion]:
        """Complete prompts on a clean prefix cache, so that the result does not depend on earlier calls."""
        weights, adapter = split_trained(self._base, trained)
        self._use(weights)
        request = self._adapter_request(adapter)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        # Otherwise prefixes cached under the previous weights would be used with the new ones.
        self._llm.reset_prefix_cache()
        if request is not None:
            self._add(request)
        try:
            outputs = self._llm.generate(inputs, self._sampling(seeds), lora_request=request, use_tqdm=False)
        except Exception:
            self._abort()
            raise
        finally:
            if request is not None:
                self._llm.llm_engine.remove_lora(request.lora_int_id)
        return [_completion(output.outputs[0]) for output in outputs]

    def _use(self, weights: str) -> None:
        if weights == self._loaded:
            return
        if weights != self._base:
            check_same_weights(self._base, weights)
        # If this fails, the weights are half loaded, and the next call must load again.
        self._loaded = ""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": weights})
        self._loaded = weights

    def _adapter_request(self, adapter: str | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        # A new name and number each time: for a known adapter, vLLM would use the old weights.
        self._adapters += 1
        return LoRARequest(f"adapter-{self._adapters}", self._adapters, adapter)

    def _add(self, request: Any) -> None:
        """Load an adapter into vLLM, and check that it has an effect: vLLM silently ignores layers that it does not know.

        Raises:
            InputError: vLLM knows none of the adapter's layers.
        """
        self._llm.llm_engine.add_lora(request)
        if not any(self._llm.collective_rpc(_applied_layers, args=(request.lora_int_id,))):
            self._llm.llm_engine.remove_lora(request.lora_int_id)
            raise InputError(
                f"{request.lora_path}: vLLM knows none of the adapter's layers in {self._base}; set refine.generate.engine: "
                "transformers, or refine.train.method: full"
            )

    def _sampling(self, seeds: Sequence[int]) -> list[Any]:
        from vllm import SamplingParams

        config = self._config
        settings = {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_new_tokens}
        return [SamplingParams(seed=seed, stop=self._stop or None, **settings) for seed in seeds]

    def _abort(self) -> None:
        """Drop the requests of a failed call, which the next call would otherwise complete too."""
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)


def _applied_layers(worker: Any, adapter: int) -> int:
    """In vLLM's worker: number of layers that an adapter changes, found the same way as in vLLM's `activate_adapter`."""
    manager = worker.model_runner.lora_manager._adapter_manager
    held = manager.get_adapter(adapter)
    return sum(manager._get_lora_layer_weights(held, name) is not None for name in manager.modules)


def settable_rank(lora_rank: int) -> int:
    """The smallest rank accepted by vLLM that is large enough for adapters of this rank."""
    return next(rank for rank in _RANKS if rank >= lora_rank)


def _completion(output: Any) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        return Completion(None, len(output.token_ids), "error", f"vLLM ended the completion: {output.finish_reason}")
    return Completion(output.text, len(output.token_ids), output.finish_reason)
