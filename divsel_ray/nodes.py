"""Waiting for nodes before a job starts.

A job is planned for the nodes present when it starts, and an autoscaling cluster has only a few until something requests more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from divsel_ray.errors import InputError, JobError

_UNITS = ("CPU", "GPU")
_GIVEN_BACK_S = 5.0
"""Longest wait until Ray counts released resources as free; normally this takes about 0.1 s."""


def await_nodes(wanted: str, limit: float) -> None:
    """Wait until the given CPUs and GPUs of the cluster are free; an autoscaling cluster starts nodes for them.

    They are requested as a placement group, which ends with the process and which autoscalers heed, and released at once.

    Args:
        wanted: e.g. `CPU=64,GPU=2`.
        limit: seconds to wait.

    Raises:
        InputError: `wanted` has another form.
        JobError: they did not become free in time.
    """
    bundles = bundles_of(wanted)
    group, end = placement_group(bundles), time.monotonic() + limit
    try:
        # In short waits, because signals are not handled during a wait.
        while not group.wait(timeout_seconds=min(1.0, limit)):
            if time.monotonic() > end:
                free = ray.available_resources()
                there = ", ".join(f"{free.get(unit, 0):g} {unit}s" for unit in _UNITS)
                raise JobError(
                    f"--wait-for {wanted}: not free within {limit:g} s, free: {there}; see `ray status` for what keeps nodes "
                    "from starting, request less, or raise placement_timeout_s"
                )
        free = ray.available_resources()
    finally:
        remove_placement_group(group)
    _await_free({unit: free.get(unit, 0) + sum(bundle.get(unit, 0) for bundle in bundles) for unit in _UNITS})


def _await_free(amounts: Mapping[str, float]) -> None:
    """Wait until Ray counts these amounts as free; until then they would look like resources that other jobs occupy."""
    end = time.monotonic() + _GIVEN_BACK_S
    while time.monotonic() < end:
        free = ray.available_resources()
        if all(free.get(unit, 0) >= amount for unit, amount in amounts.items()):
            return
        time.sleep(0.02)


def bundles_of(wanted: str) -> list[dict[str, float]]:
    """One bundle per CPU or GPU, GPUs first because they are hardest to place.

    Raises:
        InputError: `wanted` is not of the form `CPU=64,GPU=2`.
    """
    amounts: dict[str, int] = {}
    for part in wanted.split(","):
        unit, _, number = part.strip().partition("=")
        if unit not in _UNITS or unit in amounts or not number.isdecimal():
            raise InputError(f"--wait-for {wanted}: expected numbers of CPUs and GPUs, e.g. CPU=64,GPU=2")
        amounts[unit] = int(number)
    bundles = [{unit: 1.0} for unit in reversed(_UNITS) for _ in range(amounts.get(unit, 0))]
    if not bundles:
        raise InputError(f"--wait-for {wanted}: requests nothing; leave it out")
    return bundles
