"""How many trials can run on a cluster at once without waiting for each other's resources."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from divsel_ray.config import Config
from divsel_ray.errors import InputError
from divsel_ray.needs import Known, Need, needs_of, problem_of
from divsel_ray.resources import Cluster

OWN_CPUS = 1.0
"""CPUs of a trial's share that are reserved for its own process, in addition to the workers of its stages."""

Node = tuple[float, float]
"""CPUs and GPUs of a node."""


def choose_concurrency(asked: int | None, configs: Sequence[Config], cluster: Cluster, most: int, known: Known) -> int:
    """How many trials to run at once: the number requested, or else as many as fit, at least one.

    Args:
        asked: number set by the user; None to let the cluster decide.
        configs: configurations that trials may have.
        cluster: available resources.
        most: total number of trials.
        known: what is known about the pool.

    Raises:
        InputError: the number requested does not fit; the message contains the numbers.
    """
    if asked is None:
        return largest_fitting(configs, cluster, most, known)
    problem = problem_at(asked, configs, cluster, known)
    if problem is None:
        return asked
    share, largest = share_of(cluster, asked), largest_fitting(configs, cluster, asked, known)
    raise InputError(
        f"concurrency {asked}: of {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs each trial would get {share.cpus:g} and "
        f"{share.gpus:g} besides the CPU of its own process, but {problem}; set concurrency to {largest}, or remove it"
    )


def largest_fitting(configs: Sequence[Config], cluster: Cluster, most: int, known: Known) -> int:
    """The largest number of concurrent trials such that it and all smaller numbers fit."""
    candidates = range(2, min(most, int(cluster.cpus)) + 1)
    return next((count - 1 for count in candidates if problem_at(count, configs, cluster, known)), max([1, *candidates]))


def problem_at(count: int, configs: Iterable[Config], cluster: Cluster, known: Known) -> str | None:
    """Why `count` trials do not fit at once; None if they do. A single trial always fits: it is like an ordinary job."""
    if count == 1:
        return None
    share = share_of(cluster, count)
    if share.cpus < 1:
        return "its stages ask for at least 1"
    for config in configs:
        for kind, need in needs_of(config, share, known).items():
            if problem := _problem(kind, need, cluster, share):
                return problem
    return None


def _problem(kind: str, need: Need, cluster: Cluster, share: Cluster) -> str | None:
    # On a cluster with GPUs, a share without one would silently compute on CPUs.
    workers = need.workers.model_copy(update={"gpus": cluster.gpus_per_worker(need.workers)})
    # The CPUs of a local Ray instance are only bookkeeping for one job; several jobs would take them from each other.
    if not replace(share, local=False).holds_together((workers, need.count)):
        return f"{need.section} asks for {need.count} x {workers.cpus:g} CPUs and {need.count} x {workers.gpus:g} GPUs"
    return problem_of(kind, replace(need, workers=workers), share)


def share_of(cluster: Cluster, count: int) -> Cluster:
    """Share of each of `count` trials: whole nodes if there are enough, else part of one, minus the CPU of its own process."""
    if count == 1:
        return cluster
    nodes = _less_own(_dealt(cluster.each or ((cluster.cpus, cluster.gpus),), count))
    return replace(
        cluster,
        cpus=sum(cpus for cpus, _ in nodes),
        gpus=sum(gpus for _, gpus in nodes),
        node_cpus=max(cpus for cpus, _ in nodes),
        node_gpus=max(gpus for _, gpus in nodes),
        memory_gib=cluster.memory_gib / count,
        nodes=len(nodes),
        each=tuple(nodes),
    )


def _dealt(nodes: Sequence[Node], count: int) -> list[Node]:
    """Every trial gets the same number of nodes of each kind, or an equal part of one if there are fewer nodes than trials."""
    share = list[Node]()
    for (cpus, gpus), there in sorted(Counter(nodes).items()):
        parts = math.ceil(count / there)
        share += [(cpus, gpus)] * (there // count) if parts == 1 else [(cpus / parts, gpus / parts)]
    return share


def _less_own(nodes: Sequence[Node]) -> list[Node]:
    """Subtract the CPU of the trial's own process from the node with the most CPUs, preferably one without GPUs."""
    left = list(nodes)
    at = min(range(len(left)), key=lambda index: (left[index][0] < OWN_CPUS, left[index][1], -left[index][0]))
    left[at] = (max(0.0, left[at][0] - OWN_CPUS), left[at][1])
    return left
