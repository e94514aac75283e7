"""Resources that stages need and the cluster has, and the check, before anything starts, that they fit."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import ray

from divsel_ray.config import Workers
from divsel_ray.errors import InputError, JobError, one_line

SPARE_CPUS = 1.0
"""CPUs of a cluster never given to long-lived actors, so that read and bookkeeping tasks can always be scheduled."""
OOM_RETRIES = 3
"""How often a call is retried if its process was killed because the node ran out of memory."""
HIDE_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""Environment variable that makes a Ray worker without an assigned GPU see none; by default it sees all GPUs of its node."""
DECLARED_PER_CORE = 2
"""CPUs that a local Ray declares per core; four more are for short-lived work (see `connect`)."""

_STARTED_HERE = "divsel_local"
"""Resource that marks a Ray which `connect` started on this machine, visible to all its processes."""
placement_timeout_s = ContextVar("placement_timeout_s", default=600.0)
"""`Config.placement_timeout_s` of this process's job, for tasks."""

_UNIT = 10_000
Amounts = tuple[int, int]
"""CPUs and GPUs in ten-thousandths, as Ray counts them, so that fractions add up exactly."""


@dataclass(frozen=True)
class Cluster:
    """The available computing resources.

    Attributes:
        cpus: CPUs worth filling with actors (the cores of a local machine; the declared CPUs of a cluster minus the spare).
        gpus: total GPUs of all nodes.
        node_cpus: declared CPUs of the largest node.
        node_gpus: GPUs of the node with the most GPUs.
        memory_gib: total memory of all nodes.
        nodes: number of alive nodes.
        local: whether this process started it; its CPUs are then bookkeeping only (see `connect`).
        each: CPUs and GPUs of every node, minus the spare CPU on one of them; if empty, a single node has everything.
        placement_timeout_s: how long a stage waits for its actors to be ready (`Config.placement_timeout_s`).
    """

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float
    memory_gib: float
    nodes: int
    local: bool
    each: tuple[tuple[float, float], ...] = ()
    placement_timeout_s: float = 600.0

    def gpus_per_worker(self, workers: Workers) -> float:
        """GPUs per actor: as configured, otherwise one if the cluster has any."""
        return workers.gpus if workers.gpus is not None else float(self.gpus >= 1)

    def count(self, workers: Workers, tasks: int) -> int:
        """Number of actors to start for a stage with this many tasks: at least one, at most one per task."""
        if workers.count is not None:
            return max(1, min(workers.count, tasks))
        gpus = self.gpus_per_worker(workers)
        ask = _amounts(0.0 if self.local and gpus else workers.cpus, gpus)
        return max(1, min(sum(_places(node, ask) for node in self._nodes()), tasks))

    def _nodes(self) -> list[Amounts]:
        return [_amounts(*node) for node in self.each or ((self.cpus, self.gpus),)]

    @property
    def _local_cpus(self) -> float:
        """CPUs that actors may occupy on a local Ray; a share of it (for a trial) does not know what the whole declares."""
        return max(self.node_cpus - SPARE_CPUS, DECLARED_PER_CORE * self.cpus)

    @property
    def node_gib(self) -> float:
        """Average memory of a node."""
        return self.memory_gib / self.nodes

    def check(self, stage: str, workers: Workers, gib: float = 0.0) -> None:
        """Raise if no node can hold a single worker, or if the workers need more GPUs than exist.

        Whether enough CPUs are free for all workers is only known when they start (see `await_ready`).

        Args:
            stage: section of the configuration.
            workers: resources that each actor requests.
            gib: memory that each actor is known to need.

        Raises:
            InputError: the message states the request of one actor, the resources of the cluster, and the setting to change.
        """
        gpus, count = self.gpus_per_worker(workers), workers.count or 1
        asked = f"{stage}.workers: one worker requests {workers.cpus:g} CPUs and {gpus:g} GPUs, but"
        if self.node_cpus < 1:
            raise InputError(
                f"{asked} no node with a CPU is up; if the cluster starts nodes on demand, request some: --wait-for CPU=16"
            )
        if workers.cpus > self.node_cpus or gpus > self.node_gpus:
            raise InputError(
                f"{asked} the largest node has {self.node_cpus:g} CPUs and no node has more than {self.node_gpus:g} GPUs; lower "
                f"{stage}.workers.cpus or .gpus"
            )
        ask, spare = _amounts(workers.cpus, gpus), _amounts(SPARE_CPUS, 0)[0]
        if not self.local and not any(_places((cpus + spare, there), ask) for cpus, there in self._nodes()):
            raise InputError(f"{asked} no node has both; lower {stage}.workers.cpus or .gpus")
        if gib > self.node_gib:
            raise InputError(
                f"{stage}: one worker needs at least {gib:.1f} GiB of memory, but nodes have {self.node_gib:.1f}; use larger ones"
            )
        if count * gpus > self.gpus:
            raise InputError(
                f"{stage}.workers: {count} workers x {gpus:g} GPUs are requested, but the cluster has {self.gpus:g}; lower count"
            )

    def holds_together(self, *groups: tuple[Workers, int]) -> bool:
        """Whether these groups of actors, each `(workers, count)`, fit the cluster's nodes at the same time.

        First-fit decreasing: actors with the most GPUs, then CPUs, are placed first, each on the first node with room for it.
        On a local Ray, CPUs count too: long-lived actors must leave one of the declared CPUs for short-lived work.
        """
        free = [_amounts(self._local_cpus, self.gpus)] if self.local else self._nodes()
        asks = [(_amounts(one.cpus, self.gpus_per_worker(one)), count) for one, count in groups]
        for ask, count in sorted(asks, key=lambda group: group[0][::-1], reverse=True):
            left = count
            for at, (cpus, gpus) in enumerate(free):
                placed = min(left, _places((cpus, gpus), ask))
                free[at] = (cpus - placed * ask[0], gpus - placed * ask[1])
                left -= placed
            if left:
                return False
        return True


def _amounts(cpus: float, gpus: float) -> Amounts:
    return round(_UNIT * cpus), round(_UNIT * gpus)


def _places(node: Amounts, ask: Amounts) -> int:
    """How many actors with this request fit on a node; a fraction of a GPU comes from a single GPU."""
    (cpus, gpus), (cpus_asked, gpus_asked) = node, ask
    by_cpus = cpus // cpus_asked if cpus_asked else sys.maxsize
    if not 0 < gpus_asked < _UNIT:
        return min(by_cpus, gpus // gpus_asked if gpus_asked else sys.maxsize)
    return min(by_cpus, gpus // _UNIT * (_UNIT // gpus_asked) + gpus % _UNIT // gpus_asked)


def connect() -> Cluster:
    """Join the cluster at `RAY_ADDRESS` (as under `ray job submit`), or start one on this machine.

    A local Ray declares more CPUs than there are cores: they are bookkeeping only, and a stage must never wait for a
    long-lived but idle actor (Ray Data stalls silently when no declared CPU is left).

    Workers without an assigned GPU see none, no matter who started the cluster. Only if the caller has already initialised
    Ray does Ray's own setting apply, which by default lets such workers see and use GPUs assigned to others.
    """
    if not ray.is_initialized():
        # Ray Data's second reader takes seconds to list a handful of files.
        os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")
        # Ray's core writes harmless warnings about every actor pool over the progress bars.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # By default Ray retries a call forever if it killed the process for lack of memory.
        os.environ.setdefault("RAY_task_oom_retries", str(OOM_RETRIES))
        with _native_stderr_hidden():
            _start(_local() if os.environ.get("RAY_ADDRESS") is None else _joining())
        _quiet_data()
    return describe()


def _start(how: dict[str, Any]) -> None:
    """Initialise Ray.

    Raises:
        JobError: it does not respond.
    """
    try:
        ray.init(**how, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        # Ray raises plain exceptions on a busy machine or for a wrong address.
        where = f"the cluster at {os.environ['RAY_ADDRESS']}" if "address" not in how else "Ray on this machine"
        raise JobError(f"{where} did not start or respond: {one_line(error)}; check that it has free memory and CPUs") from None


def _local() -> dict[str, Any]:
    """Arguments for starting Ray on this machine; its processes inherit this environment."""
    os.environ.setdefault(HIDE_GPUS, "1")
    cpus = DECLARED_PER_CORE * (os.cpu_count() or 1) + 4
    return {"address": "local", "num_cpus": cpus, "resources": {_STARTED_HERE: 1}, "include_dashboard": False}


def _joining() -> dict[str, Any]:
    """Arguments for joining a running cluster; the workers that it starts for this job get these environment variables."""
    # Ray rejects a variable that the job was submitted with; here it has the same value.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    return {"runtime_env": {"env_vars": {HIDE_GPUS: os.environ.get(HIDE_GPUS, "1")}}}


@contextlib.contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    """Hide what Ray's core writes at startup: it announces the log level that was just set. Errors are raised anyway."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def describe() -> Cluster:
    """Describe the cluster that this process is connected to."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    local = any(_STARTED_HERE in node for node in nodes)
    each = [] if local else without_spare([(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes])
    return Cluster(
        cpus=float(os.cpu_count() or 1) if local else max(1.0, sum(cpus for cpus, _ in each)),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        node_cpus=max(node.get("CPU", 0.0) for node in nodes),
        node_gpus=max(node.get("GPU", 0.0) for node in nodes),
        memory_gib=sum(node.get("memory", 0.0) for node in nodes) / 2**30,
        nodes=len(nodes),
        local=local,
        each=tuple(each),
    )


def without_spare(nodes: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """CPUs and GPUs of every node minus the spare CPU, taken from a node without GPUs if possible; a sole CPU is kept."""
    left = list(nodes)
    able = [at for at, (cpus, _) in enumerate(left) if cpus >= SPARE_CPUS]
    if able and sum(cpus for cpus, _ in left) >= SPARE_CPUS + 1:
        at = min(able, key=lambda at: (left[at][1], -left[at][0]))
        left[at] = (left[at][0] - SPARE_CPUS, left[at][1])
    return left


def await_free_cpu() -> None:
    """Wait until a task gets a CPU, so that no stage waits forever for CPUs that other jobs occupy.

    Raises:
        JobError: none became free within `placement_timeout_s`.
    """
    limit = placement_timeout_s.get()
    done, _ = ray.wait([ray.remote(num_cpus=1)(_answer).remote()], timeout=limit)
    if not done:
        free, there = ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
        raise JobError(
            f"no task got a CPU within {limit:g} s: {free:g} of the cluster's {there:g} are free; free more of them, or raise "
            "placement_timeout_s"
        )


def _answer() -> bool:
    return True


def await_ready(references: Sequence[Any], what: str, workers: Workers, limit: float) -> None:
    """Wait until actors are scheduled and respond, so that no stage waits forever for resources that the cluster lacks.

    Args:
        references: for each actor, the reference of a call that returns once the actor is ready.
        what: section of the configuration that the workers belong to, e.g. `refine.train`.
        workers: resources that each actor requests.
        limit: seconds to wait for all of them (`Cluster.placement_timeout_s`).

    Raises:
        JobError: some were not ready in time; the message states what was requested, what is free and what is missing.
        ray.exceptions.RayError: an actor failed while starting; raised as soon as it does.
    """
    pending, end = list(references), time.monotonic() + limit
    while pending:
        done, pending = ray.wait(pending, timeout=max(0.0, end - time.monotonic()))
        if not done:
            raise JobError(_unplaced(len(pending), len(references), what, workers, limit))
        ray.get(done)


@contextlib.contextmanager
def actor_pool(count: int, what: str, workers: Workers, limit: float) -> Iterator[None]:
    """Like `await_ready`, for the actors of a Ray Data plan created and executed in the block; same arguments.

    Raises:
        JobError: some actors were not ready in time.
    """
    ray.data.DataContext.get_current().wait_for_min_actors_s = math.ceil(limit)
    try:
        yield
    except ray.exceptions.GetTimeoutError:
        raise JobError(_unplaced(count, count, what, workers, limit)) from None


def _unplaced(waiting: int, count: int, what: str, workers: Workers, limit: float) -> str:
    """Explain why actors are not ready: too few resources are free, or they are slow to start."""
    gpus, free = describe().gpus_per_worker(workers), ray.available_resources()
    asked = {"CPUs": waiting * workers.cpus, "GPUs": waiting * gpus}
    there = {"CPUs": free.get("CPU", 0.0), "GPUs": free.get("GPU", 0.0)}
    missing = [f"{asked[unit] - there[unit]:g} {unit}" for unit in asked if asked[unit] > there[unit]]
    each = f"{workers.cpus:g} CPUs and {gpus:g} GPUs"
    return (
        f"{what}: {waiting} of {count} workers ({each} each) were not ready within {limit:g} s; free: {there['CPUs']:g} CPUs and "
        f"{there['GPUs']:g} GPUs, missing: up to {' and '.join(missing) or '0, so they are slow to start'}; free more of the "
        f"cluster, lower {what}.workers or raise placement_timeout_s"
    )


def _quiet_data() -> None:
    """Turn off Ray Data's own bars and banners, which would overwrite ours, and make a stalled plan fail instead of hang."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = 1800
    # Its errors are raised as well, and reported in one line if the machines are at fault.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
