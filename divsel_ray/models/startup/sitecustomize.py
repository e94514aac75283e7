"""Run by Python when child processes start (vLLM inspects models in one): importing the package blocks mismatched builds."""

import sys
from pathlib import Path

# A working copy that is not installed is not yet on the path when this runs.
sys.path.append(str(Path(__file__).parents[3]))

import divsel_ray  # noqa: F401
