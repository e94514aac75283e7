"""A base model in this process, and adapters put on it one after another."""

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
    """A causal language model, ready to be asked, on the GPU if there is one.

    Args:
        reference: base model or fine-tuned checkpoint: folder, Hugging Face id or package:NAME.
        dtype: of weights and activations: float32, or bfloat16 for models that would not fit.
        chat_template: text of a Jinja template in place of the model's own.
        trust_remote_code: let the model's own Python code run.

    Attributes:
        tokenizer: of the model.

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
        """The model with this LoRA adapter on it, or as it is; the adapter comes off when the block ends.

        Raises:
            InputError: the folder holds no LoRA adapter, or not one of this model.
        """
        if adapter is None:
            yield self._model
            return
        adapted = _with_adapter(self._model, adapter)
        config = adapted.peft_config["default"]
        try:
            # LoRA stands in the place of the model's own layers.
            yield adapted.get_base_model()
        finally:
            replaces = config.modules_to_save or config.trainable_token_indices
            # What an adapter brings in place of whole layers would stay.
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
        raise InputError(f"{adapter}: holds no adapter_config.json; expected an adapter as PEFT saves it")
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"adapter {adapter}: does not fit its base model: {one_line(error)}") from None
    if (kind := adapted.peft_config["default"].peft_type) != "LORA":
        raise InputError(f"adapter {adapter}: of type {kind}; expected LORA")
    return adapted
