"""GGUF models inside Python packages, dequantised once to safetensors and cached per machine."""

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
"""Incremented when the content of the converted folder changes."""

_WORD_STARTS = ("▁", "Ġ")
"""Characters that SentencePiece and byte-level vocabularies write for the space before a word."""
_CHECKED_WORDS = 256


def cache_folder() -> Path:
    """Folder of converted models: $DIVSEL_CACHE, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DIVSEL_CACHE") or Path(home) / "divsel-ray")


def converted_folder(name: str, version: str) -> Path:
    """Folder of a package's converted model, whether or not it exists yet."""
    return cache_folder() / "models" / f"{name}-{version}-{_FORMAT}"


def converted_package(name: str, version: str) -> Path | None:
    """Convert a package's GGUF model unless that is done; returns its folder, or None if the package contains no such model.

    One process converts while others wait. The folder is renamed into place, so it is never incomplete.

    Raises:
        InputError: the `gguf` package, which is required to read GGUF, is missing.
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
    """Importable module of the distribution that can assemble a GGUF file, or None."""
    for top in (distribution(name).read_text("top_level.txt") or "").split():
        module = import_module(top)
        if hasattr(module, "assemble"):
            return module
    return None


def _convert(module: ModuleType, folder: Path) -> None:
    """Dequantise to float32 safetensors, saved together with the tokenizer."""
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError:
        raise InputError('reading a GGUF model requires the package gguf; run: pip install "divsel-ray[quickstart]"') from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True)
    file = Path(module.assemble(folder / "model.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    check_tokenizer(tokenizer, module.__name__)
    # GGUF files request this token but transformers ignores that, so plain tokenisation would lose it.
    tokenizer.add_bos_token = tokenizer.bos_token_id is not None
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    # A model that is still marked as quantised cannot be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file.unlink()


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Raise if a tokenizer splits words of its own vocabulary into pieces.

    Up to version 5.17, transformers silently lost most merges of a GGUF file's byte-pair encoding: the model then reads
    pieces instead of the words it knows, and every loss is meaningless.

    Raises:
        InputError: the tokenizer does; the message names a version that reads the file correctly.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [token[1:] for token, _ in vocabulary if token[:1] in _WORD_STARTS and len(token) > 3 and _is_plain(token[1:])]
    asked = words[:_CHECKED_WORDS]
    pieces = tokenizer.tokenize("".join(f" {word}" for word in asked))
    if len(pieces) > 1.5 * len(asked) + 1:
        raise InputError(
            f"{name}: transformers {version('transformers')} splits its tokenizer's own words into pieces ({len(pieces)} for "
            f'{len(asked)} words), so the model would read nonsense; run: pip install -U "transformers>=5.18,<5.20"'
        )


def _is_plain(word: str) -> bool:
    return word.isascii() and word.isalpha()
