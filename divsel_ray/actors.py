"""Long-lived actors: scheduled within a time limit, with errors reported in one line."""

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
"""How often a lost process is restarted. Call retries are unlimited: during a restart, one loss can fail a call several times."""


def start_actor(kind: type, arguments: Sequence[Any], workers: Workers, gpus: float) -> Any:
    """Start one actor. If its process dies, it is restarted and the current call repeated, up to `MAX_RETRIES` times in total."""
    return ray.remote(kind).options(num_cpus=workers.cpus, num_gpus=gpus, **RESTARTED).remote(*arguments)


def await_loaded(actors: Sequence[Any], section: str, workers: Workers, cluster: Cluster, what: str) -> None:
    """Wait until actors are scheduled (their method `ready` returns) and have then loaded their model or data (`load`).

    Args:
        actors: the actors.
        section: section of the configuration that the workers belong to.
        workers: resources that each actor requests.
        cluster: defines how long to wait for scheduling.
        what: what the actors load, for messages.

    Raises:
        InputError: `load` raised one.
        JobError: the actors were not scheduled in time, or loading failed or took too long.
    """
    await_ready([actor.ready.remote() for actor in actors], section, workers, cluster.placement_timeout_s)
    loading = [actor.load.remote() for actor in actors]
    while loading:
        done, loading = ray.wait(loading, timeout=LOAD_TIMEOUT_S)
        if not done:
            raise JobError(f"{section}: {what} was not loaded within {LOAD_TIMEOUT_S:.0f} s")
        answer_of(done[0], f"{section}: {what} cannot be loaded")


def answer_of(task: Any, what: str) -> Any:
    """The return value of a call.

    Raises:
        InputError, JobError: as raised by the call.
        JobError: the call failed otherwise; one line that begins with `what`.
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
    """Call actors on items, one at a time, through Ray Data; yields the results as they arrive.

    Args:
        items: plain values; each reaches an actor as a batch of one.
        kind: class of the actors; called with a batch, it returns one.
        arguments: arguments of its constructor.
        what: section of the configuration, for messages.
        workers: resources of each actor.
        count: number of actors.
        cluster: the cluster that they run on.
        gpus: GPUs of each actor.

    Raises:
        JobError: the actors were not scheduled in time.
        RayError: an actor lost its process or node more than `MAX_RETRIES` times.
    """
    if not items:
        return
    # A plan keeps the settings in effect at its creation: the limit must be set by then.
    with actor_pool(count, what, workers, cluster.placement_timeout_s):
        with warnings.catch_warnings():
            # Ray Data restarts a lost actor endlessly, and offers no way to limit this other than the one it deprecates.
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
