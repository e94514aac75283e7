"""Actors that outlive a call: a place on the cluster within a time limit, and answers whose errors are one line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.annotations import RayDeprecationWarning

from divsel_ray.config import Workers
from divsel_ray.errors import InputError, JobError, one_line
from divsel_ray.failures import explained
from divsel_ray.resources import Cluster, actor_pool, await_ready
from divsel_ray.tasks import MAX_RETRIES

LOAD_TIMEOUT_S = 900.0
RESTARTED = {"max_restarts": MAX_RETRIES, "max_task_retries": -1}
"""A lost process is started again so often. Calls are not counted: while it starts, one loss can fail a call several times."""


def start_actor(kind: type, arguments: Sequence[Any], workers: Workers, gpus: float) -> Any:
    """One actor. Should its process die, it is started again and the call under way repeated, `MAX_RETRIES` times in all."""
    return ray.remote(kind).options(num_cpus=workers.cpus, num_gpus=gpus, **RESTARTED).remote(*arguments)


def await_loaded(actors: Sequence[Any], section: str, workers: Workers, cluster: Cluster, what: str) -> None:
    """Wait until actors have their places (their method `ready` answers) and then have loaded what they hold (`load`).

    Args:
        actors: the actors.
        section: of the configuration, whose workers they are.
        workers: what each asks for.
        cluster: knows how long to wait for a place.
        what: they load, for messages.

    Raises:
        InputError: `load` raised one.
        JobError: no place in time, or loading failed or took too long.
    """
    await_ready([actor.ready.remote() for actor in actors], section, workers, cluster.placement_timeout_s)
    loading = [actor.load.remote() for actor in actors]
    while loading:
        done, loading = ray.wait(loading, timeout=LOAD_TIMEOUT_S)
        if not done:
            raise JobError(f"{section}: {what} is not loaded after {LOAD_TIMEOUT_S:.0f} s")
        answer_of(done[0], f"{section}: {what} cannot be loaded")


def answer_of(task: Any, what: str) -> Any:
    """What a call returned.

    Raises:
        InputError, JobError: as the call raised it.
        JobError: it failed otherwise; one line that begins with `what`.
    """
    try:
        with explained(what):
            return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | JobError):
            raise type(error.cause)(str(error.cause)) from None
        raise JobError(f"{what}: {one_line(error.cause)}") from error


def map_on_actors(
    items: Sequence[Mapping[str, Any]],
    kind: type,
    arguments: Mapping[str, Any],
    what: str,
    workers: Workers,
    count: int,
    cluster: Cluster,
    *,
    gpus: float,
) -> Iterator[dict[str, Any]]:
    """Call actors of one kind on items, one at a time, by Ray Data; what they return, as it comes.

    Args:
        items: plain values; each reaches an actor as a batch of one.
        kind: class of the actors; called with a batch, it returns one.
        arguments: of its constructor.
        what: section of the configuration, for messages.
        workers: what each actor gets.
        count: how many actors.
        cluster: where they run.
        gpus: GPUs of each.

    Raises:
        JobError: the cluster gave the actors no place.
        RayError: an actor lost its process or node more than `MAX_RETRIES` times.
    """
    if not items:
        return
    # A plan keeps the settings that stand when it is made: the limit must stand by then.
    with actor_pool(count, what, workers, cluster.placement_timeout_s):
        with warnings.catch_warnings():
            # Ray Data starts a lost actor again without end, and names no other way to limit it than the one it deprecates.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            work = ray.data.from_items([dict(item) for item in items], override_num_blocks=len(items)).map_batches(
                kind,
                batch_size=1,
                fn_constructor_kwargs=dict(arguments),
                compute=ray.data.ActorPoolStrategy(size=count),
                num_cpus=workers.cpus,
                num_gpus=gpus,
                **RESTARTED,
            )
        yield from work.iter_batches(batch_size=1)
