"""Loading models with transformers: tokenizers, the longest input, and the error message when loading fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from divsel_ray.errors import InputError, words_of
from divsel_ray.models.references import resolve_model


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn a failure to load an existing model into a one-line error.

    Args:
        what: the model as the user named it, e.g. `embed.model NAME`.

    Raises:
        InputError: transformers cannot load it.
    """
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{what}: cannot be loaded: {words_of(error)}") from None


def hush_transformers() -> None:
    """Keep transformers from writing progress bars and weight reports over this process's own output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_tokenizer(reference: str, chat_template: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """Load a model's tokenizer, optionally with another chat template.

    Args:
        reference: the model: folder, Hugging Face id or package:NAME.
        chat_template: text of a Jinja template that replaces the model's own.
        trust_remote_code: let the model's own Python code run.

    Raises:
        OSError, ValueError, KeyError: the tokenizer cannot be loaded; see `loading`.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(reference), trust_remote_code=trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def positions_of(config: Any) -> int | None:
    """Longest input for which a model of this configuration has positions; None if the configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
