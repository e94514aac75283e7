"""Model and data references: a local folder, a Hugging Face id, or `package:NAME` for the contents of a Python package."""

from __future__ import annotations

import hashlib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from divsel_ray.errors import InputError
from divsel_ray.models.gguf import converted_folder, converted_package
from divsel_ray.store import file_digest

PACKAGE = "package:"
_SAMPLED_BYTES = 1 << 20
_DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".jsonl.gz", ".json.gz", ".csv", ".csv.gz")


def resolve_model(reference: str) -> str:
    """Resolve a reference to a folder; a Hugging Face id is returned unchanged.

    A GGUF model inside a package is converted to safetensors once and cached.

    Raises:
        InputError: the package is not installed or contains no model, or the path does not exist.
    """
    if reference.startswith(PACKAGE):
        return str(_packaged_model(reference.removeprefix(PACKAGE)))
    path = Path(reference).expanduser()
    if path.is_dir():
        return str(path.absolute())
    looks_local = reference.startswith((".", "/", "~")) or reference.count("/") != 1
    if looks_local and "/" in reference:
        raise InputError(f"model {reference}: no such folder; expected a local folder, a Hugging Face id or package:NAME")
    return reference


def absolute_model(reference: str) -> str:
    """Make a reference independent of the working directory: a local folder becomes an absolute path."""
    path = Path(reference).expanduser()
    return str(path.absolute()) if not reference.startswith(PACKAGE) and path.is_dir() else reference


def packaged_data(reference: str) -> list[Path]:
    """List the data files in the package of a `package:NAME` reference.

    Raises:
        InputError: the package is not installed or contains no data file.
    """
    name = reference.removeprefix(PACKAGE)
    files = [path for path in packaged_files(name) if path.name.endswith(_DATA_SUFFIXES)]
    if not files:
        raise InputError(f"{reference}: the package contains no {', '.join(_DATA_SUFFIXES)} file")
    return sorted(files)


def unconverted(reference: str) -> bool:
    """Whether `resolve_model` would have to convert the model first, which takes about a minute."""
    if not reference.startswith(PACKAGE):
        return False
    name = reference.removeprefix(PACKAGE)
    return _model_folder(name) is None and not converted_folder(name, _distribution(name).version).is_dir()


def fingerprint(reference: str) -> str:
    """Identify a model's content by 16 hex digits of its files' names, sizes and sampled bytes.

    Small files are hashed whole and large ones by their first and last MiB, so that a 100 GB model does not take minutes. A
    Hugging Face id is its own fingerprint: use a revision-pinned folder where that is not enough.
    """
    if reference.startswith(PACKAGE):
        name = reference.removeprefix(PACKAGE)
        version = _distribution(name).version
        # The conversion is part of the identity of a converted model.
        known = f"{name}=={version}" if _model_folder(name) else converted_folder(name, version).name
        return hashlib.sha256(known.encode()).hexdigest()[:16]
    folder = Path(resolve_model(reference))
    if not folder.is_dir():
        return reference
    state = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        state.update(f"{path.relative_to(folder)}:{path.stat().st_size}:{_sampled_digest(path)}".encode())
    return state.hexdigest()[:16]


def _sampled_digest(path: Path) -> str:
    if path.stat().st_size <= 2 * _SAMPLED_BYTES:
        return file_digest(path)
    with path.open("rb") as stream:
        state = hashlib.sha256(stream.read(_SAMPLED_BYTES))
        stream.seek(-_SAMPLED_BYTES, 2)
        state.update(stream.read(_SAMPLED_BYTES))
    return state.hexdigest()


def _packaged_model(name: str) -> Path:
    folder = _model_folder(name)
    if folder is not None:
        return folder
    converted = converted_package(name, _distribution(name).version)
    if converted is None:
        raise InputError(f"{PACKAGE}{name}: the package contains neither a transformers model nor GGUF chunks")
    return converted


def _model_folder(name: str) -> Path | None:
    """Folder of a transformers model inside the package, or None."""
    found = [path.parent for path in packaged_files(name) if path.name == "config.json"]
    folders = [folder for folder in found if (folder / "tokenizer_config.json").is_file()]
    return min(folders, key=lambda folder: len(folder.parts), default=None)


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise InputError(
            f'{PACKAGE}{name}: the package is not installed; run: pip install {name}   (or pip install "divsel-ray[quickstart]")'
        ) from None


def packaged_files(name: str) -> list[Path]:
    """List the files of an installed distribution; raises InputError if it is not installed."""
    paths = [Path(str(file.locate())) for file in _distribution(name).files or []]
    return [path for path in paths if path.is_file()]
