"""Diverse, quality-weighted selection of instruction data on Ray (Yu et al. 2024, arXiv 2409.11378).

Public names are imported on first use, to keep `import divsel_ray` and `divsel --help` fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from divsel_ray.models.companions import block_mismatched

if TYPE_CHECKING:
    from divsel_ray.cluster.estimator import KMeans
    from divsel_ray.config import Config
    from divsel_ray.config.files import load_config
    from divsel_ray.errors import InputError, JobError
    from divsel_ray.pipeline import run_job, select_rows
    from divsel_ray.report.page import write_report

__version__ = "0.1.0"

_HOMES = {
    "Config": "divsel_ray.config",
    "InputError": "divsel_ray.errors",
    "JobError": "divsel_ray.errors",
    "KMeans": "divsel_ray.cluster.estimator",
    "load_config": "divsel_ray.config.files",
    "run_job": "divsel_ray.pipeline",
    "select_rows": "divsel_ray.pipeline",
    "write_report": "divsel_ray.report.page",
}

__all__ = [
    "Config",
    "InputError",
    "JobError",
    "KMeans",
    "load_config",
    "run_job",
    "select_rows",
    "write_report",
]

block_mismatched()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'divsel_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
