"""What training leaves: a folder with an adapter, or with a whole model that takes the place of the base model."""

from __future__ import annotations

import json
from pathlib import Path

from divsel_ray.errors import InputError

_COMPUTED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of names of what old checkpoints hold and models compute: frequencies of positions, causal masks."""
Shapes = dict[str, tuple[int, ...]]


def is_adapter(folder: str) -> bool:
    """Whether a folder holds an adapter (PEFT's format) instead of a whole model."""
    return (Path(folder) / "adapter_config.json").is_file()


def split_trained(base: str, trained: str | None) -> tuple[str, str | None]:
    """The folder that the model's weights come from, and the adapter on top of them, if any."""
    if trained is None:
        return base, None
    return (base, trained) if is_adapter(trained) else (trained, None)


def check_same_weights(base: str, trained: str) -> None:
    """Make sure that a trained model has the base model's weights, all and no others: vLLM takes a part in silence.

    Only the headers of the safetensors files are read. A tied output layer may be written or left out; so may be what some
    checkpoints hold beside their weights, and the prefix that GPT-2's leaves out.

    Args:
        base: folder, or a Hugging Face id that is in the local cache.
        trained: folder.

    Raises:
        InputError: a weight is missing, unknown or has another shape; names the first.
    """
    expected, found = _shapes(_local_folder(base)), _shapes(Path(trained))
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if json.loads((Path(trained) / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", True):
        names = [name for name in names if not (name.endswith("lm_head.weight") and (name in expected) != (name in found))]
    if names:
        first = names[0]
        raise InputError(
            f"{trained}: {len(names)} weights are not those of {base}, e.g. {first}: expected {_described(expected, first)}, "
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
    # Some folders hold the weights in another form as well, `consolidated.safetensors`.
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no *.safetensors file; save the model with save_pretrained")
    shapes: Shapes = {}
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return {name.removeprefix("transformer."): shape for name, shape in shapes.items() if not name.endswith(_COMPUTED)}
