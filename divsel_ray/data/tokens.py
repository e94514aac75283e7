"""Token counts, for sizes and batch order."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from divsel_ray.errors import InputError, first_line
from divsel_ray.models.loading import load_tokenizer
from divsel_ray.models.references import resolve_model

_CHARS = 100_000
_BATCH = 256


def count_tokens(tokenizer: str, texts: Sequence[str]) -> list[int]:
    """Tokens of each text (of its first 100,000 characters), special tokens not counted.

    Args:
        tokenizer: model reference.
        texts: (n,) texts.

    Raises:
        InputError: the reference cannot be loaded as a tokenizer.
    """
    count = _counter(tokenizer)
    return [n for begin in range(0, len(texts), _BATCH) for n in count([text[:_CHARS] for text in texts[begin : begin + _BATCH]])]


@functools.lru_cache(maxsize=2)
def _counter(reference: str) -> Callable[[list[str]], list[int]]:
    """The counting function of a tokenizer, created once per process."""
    # Tasks already run in parallel; threads of the tokenizer would only compete with them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name = resolve_model(reference)
    try:
        return (
            _from_file(Path(name) / "tokenizer.json") if (Path(name) / "tokenizer.json").is_file() else _from_transformers(name)
        )
    except Exception as error:
        raise InputError(
            f"tokenizer {reference}: cannot be loaded ({first_line(error)}); expected a model folder, id or package:NAME"
        ) from None


def _from_file(path: Path) -> Callable[[list[str]], list[int]]:
    # Not through transformers, which takes every worker seconds to import and yields the same counts.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _from_transformers(name: str) -> Callable[[list[str]], list[int]]:
    tokenizer = load_tokenizer(name)
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    return lambda texts: [len(ids) for ids in tokenizer(texts, **options)["input_ids"]]
