"""vLLM in this process: its environment, set before the first import, and an engine for pooling models."""

from __future__ import annotations

import os
from typing import Any

from divsel_ray.errors import InputError, words_of

_CPU_CACHE = 1 << 30
"""Bytes of vLLM's cache on a CPU; on a GPU vLLM's default applies."""


def prepare_vllm() -> None:
    """Set the environment for an engine in this process."""
    # One process instead of three starts in seconds; several engines on one host must not bind the same cores.
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="ERROR",
    )


def pooling_engine(what: str, folder: str, *, dtype: str, max_tokens: int, batch_tokens: int, trust_remote_code: bool) -> Any:
    """Create a `vllm.LLM` with a model that embeds or scores texts.

    Args:
        what: the model as the user named it, for messages.
        folder: folder of the model, or its Hugging Face id.
        dtype: data type of the model.
        max_tokens: longest text in tokens.
        batch_tokens: tokens that vLLM processes per step, at least `max_tokens`.
        trust_remote_code: let the model's own Python code run.

    Raises:
        InputError: vLLM is not installed, or cannot load the model.
    """
    prepare_vllm()
    import torch

    try:
        from vllm import LLM
    except ImportError:
        raise InputError(
            f'{what}: vLLM is not installed on this node; install "divsel-ray[cpu]" or [gpu], or run the model with transformers'
        ) from None
    on_gpu = torch.cuda.is_available()
    try:
        return LLM(
            folder,
            runner="pooling",
            dtype=dtype,
            max_model_len=max_tokens,
            max_num_batched_tokens=max(batch_tokens, max_tokens),
            enforce_eager=not on_gpu,
            trust_remote_code=trust_remote_code,
            disable_log_stats=True,
            seed=0,
            **({} if on_gpu else {"kv_cache_memory_bytes": _CPU_CACHE}),
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: vLLM cannot load it: {words_of(error)}") from None
