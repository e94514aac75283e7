"""What vLLM is told before it is first imported in a process."""

from __future__ import annotations

import os


def prepare_vllm() -> None:
    """Set the environment for an engine in this process."""
    # One process instead of three, and it starts in seconds; several engines on one host must not bind the same cores.
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="ERROR",
    )
