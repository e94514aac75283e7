"""Many independent calls on Ray, one per CPU at a time.

Errors raised by the called function are passed on and never retried. If a process or node is lost, the call is retried up to
`MAX_RETRIES` times before the job ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from divsel_ray.errors import InputError
from divsel_ray.progress import Progress, Silent
from divsel_ray.resources import await_free_cpu, describe

T = TypeVar("T")
MAX_RETRIES = 3
"""How often a call is retried after losing its process or node; an error that the call raises ends it at once."""
_POLL_SECONDS = 5.0


def run_tasks(function: Callable[..., T], calls: Sequence[tuple[Any, ...]], progress: Progress, unit: str) -> list[T]:
    """Call a function on Ray and return the results in the order of the calls.

    Args:
        function: module-level function, called in worker processes.
        calls: arguments of each call.
        progress: receives the number of finished calls.
        unit: what a call processes, in the plural.

    Raises:
        InputError: a call raised one.
        JobError: no CPU of the cluster was free in time (see `resources.placement_timeout_s`).
        RayError: a call lost its process or node more than `MAX_RETRIES` times, see `failures.explained`.
    """
    remote, places = ray.remote(max_retries=MAX_RETRIES)(function), max(1, int(describe().cpus))
    if calls:
        await_free_cpu()
    results: list[Any] = [None] * len(calls)
    waiting, running = list(enumerate(calls))[::-1], dict[Any, int]()
    while waiting or running:
        while waiting and len(running) < places:
            index, call = waiting.pop()
            running[remote.remote(*call)] = index
        done, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
        for reference in done:
            results[running.pop(reference)] = result_of(reference)
        progress.advance(len(calls) - len(waiting) - len(running), len(calls), unit)
    return results


def run_task(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function once on Ray, like `run_tasks`."""
    return run_tasks(function, [arguments], Silent(), "tasks")[0]


def result_of(reference: Any) -> Any:
    """The return value of a task.

    Raises:
        InputError: the task raised one.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
