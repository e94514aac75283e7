"""Run by Python at start in child processes (vLLM inspects models in one): importing the package blocks bad builds."""

import divsel_ray  # noqa: F401
