"""What the tests of generation share: prompts, and a model that lacks a weight."""

from __future__ import annotations

import shutil
from pathlib import Path

PROMPTS = ["how are you", "write a story about cats", "hello world", "one two three", "rain", "the sea"]


def without_weight(model: str, folder: Path, name: str) -> str:
    """A copy of a model in a new folder, of which one weight is missing."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)
