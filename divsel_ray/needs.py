"""What each stage of a job requires of the cluster, as far as known before the stage runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from divsel_ray.cluster.distributed import STATE_BYTES
from divsel_ray.config import Config, RefineConfig, RewardConfig, Workers
from divsel_ray.errors import InputError
from divsel_ray.resources import SPARE_CPUS, Cluster
from divsel_ray.score.bradley_terry import THREADS
from divsel_ray.select.registry import SAMPLERS, memory_of
from divsel_ray.stages import DRAW_MEMORY_SHARE

_MANY = 1 << 30
"""Number of work units assumed for a stage that has not split its work yet, so that only the cluster limits the workers."""
_TASK = Workers(count=1, gpus=0)


@dataclass(frozen=True)
class Known:
    """What is known about the pool.

    Attributes:
        rows: number of rows.
        dimension: length of the vectors.
    """

    rows: int | None = None
    dimension: int | None = None


@dataclass(frozen=True)
class Need:
    """What a stage requires.

    Attributes:
        section: section of the configuration, for messages.
        workers: resources that one process requests.
        count: number of processes.
        gib: memory that one process is known to need; None if unknown in advance.
        together: number of processes that must start together.
    """

    section: str
    workers: Workers
    count: int
    gib: float | None = None
    together: int = 1


def needs_of(config: Config, cluster: Cluster, known: Known, *, rounds: bool = True) -> dict[str, Need]:
    """The requirements of the stages, by the last part of the stage name.

    Args:
        config: configuration of the job.
        cluster: the available resources.
        known: what is known about the pool.
        rounds: whether `refine` describes rounds, or only the recipe of a single training.
    """
    parallel = Need("pool", Workers(gpus=0), max(1, int(cluster.cpus)))
    needs = {
        "pool": parallel,
        "clean": parallel,
        "semantic": parallel,
        "embed": _embedding(config, cluster, parallel),
        "cluster": _clustering(config, cluster, known),
        "quality": _quality(config, cluster),
        "draw": Need("select", _TASK, 1, draw_gib(config, known)),
        "diversity": Need("select", _TASK, 1),
    }
    if config.reward is not None:
        fitting = Workers(count=1, cpus=min(THREADS, cluster.node_cpus), gpus=0)
        needs["reward"] = Need("reward", fitting, 1)
    if config.refine is not None:
        needs |= _rounds(config, config.refine, cluster) if rounds else _training(config.refine)
    return needs


def _training(refine: RefineConfig) -> dict[str, Need]:
    workers, count = refine.train.workers, refine.train.workers.count or 1
    fewest = refine.train.min_workers or count
    return {"train": Need("refine.train", workers.model_copy(update={"count": fewest}), count, together=fewest)}


def _rounds(config: Config, refine: RefineConfig, cluster: Cluster) -> dict[str, Need]:
    generate = refine.generate
    cache_in_memory = generate.engine == "vllm" and not cluster.gpus_per_worker(generate.workers)
    cache_gib = generate.kv_cache_gib if cache_in_memory else None
    needs = _training(refine) | {"generate": _pool("refine.generate", generate.workers, cluster, cache_gib)}
    if config.reward is not None:
        needs["score"] = _scorer("reward", config.reward, cluster)
    if refine.second is not None:
        needs["second"] = _scorer("refine.second", refine.second, cluster)
    return needs


def _pool(section: str, workers: Workers, cluster: Cluster, gib: float | None = None) -> Need:
    return Need(section, workers, cluster.count(workers, _MANY), gib)


def _embedding(config: Config, cluster: Cluster, parallel: Need) -> Need:
    if config.embed.api is not None:
        return _asker("embed", config.embed.workers)
    return parallel if config.embed.given else _pool("embed", config.embed.workers, cluster)


def _clustering(config: Config, cluster: Cluster, known: Known) -> Need:
    """The vectors in memory are spread over the workers."""
    need, vectors = _pool("cluster", config.cluster.workers, cluster), vectors_gib(known)
    return need if vectors is None else replace(need, gib=vectors / need.count)


def _quality(config: Config, cluster: Cluster) -> Need:
    quality, kind = config.quality, config.quality.source.partition(":")[0]
    if quality.judge or (quality.source == "reward" and config.reward and config.reward.judge):
        return _asker("quality", quality.workers)
    computed = kind not in ("column", "given")
    return _pool("quality", quality.workers if computed else quality.workers.model_copy(update={"gpus": 0.0}), cluster)


def _scorer(section: str, config: RewardConfig, cluster: Cluster) -> Need:
    return _asker(section, config.workers) if config.judge else _pool(section, config.workers, cluster)


def _asker(section: str, workers: Workers) -> Need:
    """A single process sends requests to the server, regardless of `count`."""
    return Need(section, workers.model_copy(update={"count": 1, "gpus": 0.0}), 1)


def vectors_gib(known: Known) -> float | None:
    """Memory of all vectors of the pool, as k-means keeps them if they fit (otherwise it rereads them on every pass)."""
    if known.rows is None or known.dimension is None:
        return None
    return known.rows * (2 * known.dimension + STATE_BYTES) / 2**30


def draw_gib(config: Config, known: Known) -> float | None:
    """Memory of a draw; None if it depends on how many rows are left out, or on how the draw is split into parts."""
    select = config.select
    if known.rows is None or known.dimension is None:
        return None
    left_out = select.exclude or select.missing == "drop" or config.quality.oversample or config.clean.semantic_duplicates
    if left_out or select.quotas or config.budget_unit == "tokens":
        return None
    k = config.cluster.resolved(known.rows).k or 1
    rows = min(config.budget, known.rows)
    return memory_of(SAMPLERS[select.sampler], known.rows, known.dimension, k, rows, select) / 2**30


def problem_of(kind: str, need: Need, cluster: Cluster) -> str | None:
    """Why the cluster cannot run a stage; None if it can, as far as is known."""
    if kind == "draw" and need.gib is not None and need.gib > DRAW_MEMORY_SHARE * cluster.node_gib:
        most = DRAW_MEMORY_SHARE * cluster.node_gib
        return f"select.sampler: the draw needs {need.gib:.1f} GiB, but may use only {most:.1f} of a node; see `divsel samplers`"
    try:
        # k-means that does not fit in memory rereads its rows on every pass.
        cluster.check(need.section, need.workers, 0.0 if kind == "cluster" else need.gib or 0.0)
    except InputError as error:
        return str(error)
    if not cluster.local and need.together * need.workers.cpus > cluster.cpus + SPARE_CPUS:
        return (
            f"{need.section}.workers: {need.together} workers x {need.workers.cpus:g} CPUs are needed at once, but the cluster "
            f"has {cluster.cpus + SPARE_CPUS:g}; lower count or cpus"
        )
    return None


def check_cluster(config: Config, cluster: Cluster, known: Known | None = None, *, rounds: bool = True) -> None:
    """Raise if a stage could never be scheduled, before any work is done.

    Raises:
        InputError: the message states what the stage requires, what is available, and which setting to change.
    """
    for kind, need in needs_of(config, cluster, known or Known(), rounds=rounds).items():
        if problem := problem_of(kind, need, cluster):
            raise InputError(problem)
