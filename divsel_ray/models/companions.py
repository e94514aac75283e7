"""Prevents the import of torchvision, torchaudio and torchcodec builds that do not match the installed torch.

The CPU build of vLLM requires all three, and the package index offers only CUDA builds of them. With a CPU build of
torch they fail when transformers or vLLM import them ("operator torchvision::nms does not exist"). divsel-ray does not need
them: a build whose label does not match torch's is reported as absent, in this process and in its child processes.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_STARTUP = str(Path(__file__).parent / "startup")


def mismatched(versions: dict[str, str]) -> list[str]:
    """List the companions whose build cannot work with the installed torch, given {distribution: version}.

    Example:
        >>> mismatched({"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.11.0+cpu"})
        ['torchvision']
    """
    if not versions.get("torch", "").endswith("+cpu"):
        return []
    return [name for name in COMPANIONS if name in versions and not versions[name].endswith("+cpu")]


def block_mismatched() -> list[str]:
    """Make mismatched companions unimportable here and in child processes; return their names."""
    versions = {name: found for name in ("torch", *COMPANIONS) if (found := installed_version(name))}
    names = mismatched(versions)
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    path = os.environ.get("PYTHONPATH", "")
    if names and _STARTUP not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_STARTUP, path]))
    return names


def installed_version(name: str) -> str | None:
    """Version of an installed distribution; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
