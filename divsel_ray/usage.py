"""Resource usage of a stage, sampled by a thread while the stage runs, and the resulting hours and cost.

CPUs and GPUs are those that Ray has assigned, busy or not: an idle actor keeps others from using them. Memory is that of the
processes on this machine.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import psutil
import ray

from divsel_ray.config import PricesConfig
from divsel_ray.resources import Cluster
from divsel_ray.store import read_json, write_json

FACT = "usage"
"""The name under which a stage's facts contain its usage."""
ATTEMPTS = "_usage.json"
"""File in the folder of an unfinished stage: the usage of its attempts so far."""
SAVE_S = 5.0
"""Seconds between writes of that file; at most this much of a killed attempt is lost."""
DRIVER_CPUS = 1.0


@dataclass(frozen=True)
class Usage:
    """Resources used by one stage, or by several together.

    Attributes:
        wall_s: seconds of work.
        cpu_s: CPU-seconds occupied, with the driver counted as one CPU.
        gpu_s: GPU-seconds occupied.
        gib_s: GiB-seconds of memory on this machine; pages shared by processes count for each of them.
        peak_gib: peak memory in GiB.
        attempts: how often the work was started; 1 unless it was interrupted.
        nodes: number of machines in the cluster; memory is measured on one of them only.
        paid: cost of judge requests, over all attempts.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    gib_s: float = 0.0
    peak_gib: float = 0.0
    attempts: int = 0
    nodes: int = 1
    paid: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        summed = {one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Usage)}
        return replace(Usage(**summed), peak_gib=max(self.peak_gib, other.peak_gib), nodes=max(self.nodes, other.nodes))

    def money(self, prices: PricesConfig) -> float:
        """Total cost: the resources at these prices, plus the payments to a judge."""
        return self.paid + (self.cpu_s * prices.cpu_hour + self.gpu_s * prices.gpu_hour + self.gib_s * prices.gib_hour) / 3600


def usage_of(facts: Mapping[str, Any]) -> Usage | None:
    """The usage in a stage's facts; None if the stage was built by a version that did not record it."""
    return Usage(**facts[FACT]) if facts.get(FACT) else None


def paid_to_servers(facts: Mapping[str, Any]) -> float:
    """Payments to servers recorded in a stage's facts, for embedding or for judging rows or completions."""
    scorers = (facts, *(facts.get(name) or {} for name in ("rewards", "second")))
    return math.fsum(scorer.get("cost", 0.0) for scorer in scorers)


@dataclass
class Meter:
    """Accumulates usage, sample by sample.

    Attributes:
        usage: usage of this attempt and earlier ones.
    """

    usage: Usage
    _last: float = field(default_factory=time.monotonic)

    def add(self, cpus: float, gpus: float, gib: float) -> None:
        """Add the resources occupied since the last sample."""
        now = time.monotonic()
        spent, self._last = now - self._last, now
        held = Usage(spent, cpus * spent, gpus * spent, gib * spent, gib)
        self.usage += held


class Recorder:
    """Measures the stages of a job.

    Args:
        cluster: where the job runs. On a shared cluster, resources that others occupied when the job began are not counted.
    """

    def __init__(self, cluster: Cluster | None) -> None:
        self._cluster = cluster
        self._others = (0.0, 0.0) if cluster is None or cluster.local else _handed_out()

    @contextlib.contextmanager
    def measure(self, folder: Path) -> Iterator[Meter]:
        """Measure the block; the usage of earlier interrupted attempts is added from the records in `folder`."""
        meter = Meter(_earlier(folder) + Usage(attempts=1, nodes=self._cluster.nodes if self._cluster else 1))
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(meter, folder, stop), daemon=True)
        thread.start()
        try:
            yield meter
        except BaseException:
            _end(stop, thread)
            # The failure may have been a full disk.
            with contextlib.suppress(OSError):
                write_json(folder / ATTEMPTS, asdict(meter.usage))
            raise
        _end(stop, thread)
        (folder / ATTEMPTS).unlink(missing_ok=True)

    def _watch(self, meter: Meter, folder: Path, stop: threading.Event) -> None:
        began = saved = time.monotonic()
        ended = False
        while not ended:
            # Often at first, to capture short stages; rarely later, to avoid slowing long ones.
            ended = stop.wait(min(2.0, max(0.1, (time.monotonic() - began) / 10)))
            # Measuring must never end a job: what cannot be observed (a cluster shutting down) counts as unused.
            with contextlib.suppress(Exception):
                meter.add(*self._held(), self._gib())
            if time.monotonic() - saved > SAVE_S and not ended:
                saved = time.monotonic()
                with contextlib.suppress(OSError):
                    write_json(folder / ATTEMPTS, asdict(meter.usage))

    def _held(self) -> tuple[float, float]:
        cpus, gpus = (max(0.0, now - before) for now, before in zip(_handed_out(), self._others, strict=True))
        cpus += DRIVER_CPUS
        # A Ray that this process started declares more CPUs than the machine has.
        most = self._cluster.cpus if self._cluster is not None and self._cluster.local else cpus
        return min(cpus, most), gpus

    def _gib(self) -> float:
        here = psutil.Process()
        if self._cluster is None or self._cluster.local:
            others = here.children(recursive=True)
        else:
            # Ray does not reveal which job a worker serves.
            titles = ((one, one.info["name"] or "") for one in psutil.process_iter(["name"]))
            others = [one for one, title in titles if title.startswith("ray::") and "IDLE" not in title]
        return sum(_resident(one) for one in (here, *others)) / 2**30


def _resident(process: Any) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _handed_out() -> tuple[float, float]:
    """CPUs and GPUs that Ray has assigned to actors and tasks."""
    if not ray.is_initialized():
        return 0.0, 0.0
    total, free = ray.cluster_resources(), ray.available_resources()
    cpus, gpus = (total.get(name, 0.0) - free.get(name, 0.0) for name in ("CPU", "GPU"))
    return cpus, gpus


def _earlier(folder: Path) -> Usage:
    try:
        return Usage(**read_json(folder / ATTEMPTS))
    except (FileNotFoundError, ValueError, TypeError):
        return Usage()


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()
