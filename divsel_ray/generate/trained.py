"""Results of training: a folder with an adapter, or with a whole model that replaces the base model."""

from __future__ import annotations

import json
from pathlib import Path

from divsel_ray.errors import InputError

_COMPUTED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Name suffixes of tensors that old checkpoints store but models compute: position frequencies, causal masks."""
Shapes = dict[str, tuple[int, ...]]


def is_adapter(folder: str) -> bool:
    """Whether a folder contains an adapter (PEFT's format) instead of a whole model."""
    return (Path(folder) / "adapter_config.json").is_file()


def split_trained(base: str, trained: str | None) -> tuple[str, str | None]:
    """The folder of the model's weights, and the adapter on top of them, if any."""
    if trained is None:
        return base, None
    return (base, trained) if is_adapter(trained) else (trained, None)


def check_same_weights(base: str, trained: str) -> None:
    """Check that a trained model has exactly the base model's weights, since vLLM silently accepts a part of them.

    Only the headers of the safetensors files are read. A tied output layer may be present or missing, as may computed tensors
    that some checkpoints store, and the name prefix that GPT-2's checkpoint omits.

    Args:
        base: folder, or a Hugging Face id that is in the local cache.
        trained: folder.

    Raises:
        InputError: a weight is missing, unknown or has another shape; the message names the first.
    """
    expected, found = _shapes(_local_folder(base)), _shapes(Path(trained))
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if json.loads((Path(trained) / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", True):
        names = [name for name in names if not (name.endswith("lm_head.weight") and (name in expected) != (name in found))]
    if names:
        first = names[0]
        raise InputError(
            f"{trained}: {len(names)} weights differ from those of {base}, e.g. {first}: expected {_described(expected, first)}, "
            f"found {_described(found, first)}; save the whole model, trained from this base model"
        )


def _described(shapes: Shapes, name: str) -> str:
    return f"shape {shapes[name]}" if name in shapes else "none"


def _local_folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, local_files_only=True))


def _shapes(folder: Path) -> Shapes:
    """Names and shapes of the weights in a folder's safetensors files."""
    # Some folders also contain the weights in another form, `consolidated.safetensors`.
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no *.safetensors file; save the model with save_pretrained")
    shapes: Shapes = {}
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return {name.removeprefix("transformer."): shape for name, shape in shapes.items() if not name.endswith(_COMPUTED)}
