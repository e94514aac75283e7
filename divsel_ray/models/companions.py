"""Keeps torchvision, torchaudio and torchcodec builds that do not fit the installed torch from being imported.

The CPU build of vLLM requires all three, and the package index offers only CUDA builds of them. Beside a CPU build of
torch they fail when transformers or vLLM import them ("operator torchvision::nms does not exist"). Nothing here needs
them: a build whose label does not fit torch's is reported as absent, in this process and in the processes it starts.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_STARTUP = str(Path(__file__).parent / "startup")


def mismatched(versions: dict[str, str]) -> list[str]:
    """Companions whose build cannot work beside torch, given {distribution: version}.

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
    """The version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
