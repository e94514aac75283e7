"""A base model in this process, and adapters applied to it one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from divsel_ray.errors import InputError, one_line
from divsel_ray.generate.trained import is_adapter
from divsel_ray.models.loading import load_tokenizer, loading
from divsel_ray.models.references import resolve_model


class LoadedModel:
    """A loaded causal language model, on the GPU if there is one.

    Args:
        reference: base model or fine-tuned checkpoint: folder, Hugging Face id or package:NAME.
        dtype: type of weights and activations: float32, or bfloat16 for models that would not fit.
        chat_template: text of a Jinja template that replaces the model's own.
        trust_remote_code: whether the model's own Python code may run.

    Attributes:
        tokenizer: the model's tokenizer.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(
        self, reference: str, dtype: str = "float32", chat_template: str | None = None, trust_remote_code: bool = False
    ) -> None:
        self._reference, self._dtype, self._trusted = reference, dtype, trust_remote_code
        with loading(f"model {reference}"):
            self.tokenizer = load_tokenizer(reference, chat_template, trust_remote_code=trust_remote_code)
        self._model = self._load()

    @contextlib.contextmanager
    def using(self, adapter: Path | None) -> Iterator[Any]:
        """The model with this LoRA adapter, or unchanged if None; the adapter is removed at the end of the block.

        Raises:
            InputError: the folder contains no LoRA adapter, or one of another model.
        """
        if adapter is None:
            yield self._model
            return
        adapted = _with_adapter(self._model, adapter)
        config = adapted.peft_config["default"]
        try:
            # The base model's layers are already replaced by LoRA layers.
            yield adapted.get_base_model()
        finally:
            replaces = config.modules_to_save or config.trainable_token_indices
            # Unloading would keep whole layers that the adapter replaced.
            self._model = self._load() if replaces else adapted.unload()

    def _load(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        dtype, folder = getattr(torch, self._dtype), resolve_model(self._reference)
        with loading(f"model {self._reference}"):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=self._trusted)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    if not is_adapter(str(adapter)):
        raise InputError(f"{adapter}: contains no adapter_config.json; expected an adapter as saved by PEFT")
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"adapter {adapter}: does not fit its base model: {one_line(error)}") from None
    if (kind := adapted.peft_config["default"].peft_type) != "LORA":
        raise InputError(f"adapter {adapter}: has type {kind}; expected LORA")
    return adapted
