"""Run by Python at start in child processes (vLLM inspects models in one): importing the package blocks bad builds."""

import sys
from pathlib import Path

# A working copy that is not installed is not on the path yet when this runs.
sys.path.append(str(Path(__file__).parents[3]))

import divsel_ray  # noqa: F401
