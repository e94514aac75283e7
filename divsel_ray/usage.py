"""What a stage holds while it runs: a thread that looks now and then, and hours and money from what it saw.

CPUs and GPUs are those that Ray has handed out, whether they are busy or not: an idle actor keeps others from them. Memory
is what the processes of this machine have in it.
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
"""The name under which a stage's facts hold its usage."""
ATTEMPTS = "_usage.json"
"""In the folder of an unfinished stage: what its attempts have used so far."""
SAVE_S = 5.0
"""Seconds between two savings of that file; so much of a killed attempt is lost at most."""
DRIVER_CPUS = 1.0


@dataclass(frozen=True)
class Usage:
    """What one stage, or several together, held.

    Attributes:
        wall_s: seconds of work.
        cpu_s: CPUs held times seconds, the driver counted as one CPU.
        gpu_s: GPUs held times seconds.
        gib_s: GiB in memory on this machine times seconds; pages that processes share count for each of them.
        peak_gib: most GiB at one time.
        attempts: how often the work was begun; 1 unless it was interrupted.
        nodes: machines of the cluster; memory is known of one of them.
        paid: money that a judge was paid, in all attempts.
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
        """What it cost: what was held, by these prices, and what a judge was paid."""
        return self.paid + (self.cpu_s * prices.cpu_hour + self.gpu_s * prices.gpu_hour + self.gib_s * prices.gib_hour) / 3600


def usage_of(facts: Mapping[str, Any]) -> Usage | None:
    """The usage in a stage's facts; None where the stage was made by a version that recorded none."""
    return Usage(**facts[FACT]) if facts.get(FACT) else None


def paid_to_servers(facts: Mapping[str, Any]) -> float:
    """Money that a stage's facts say servers were paid: to embed, or to judge rows or completions."""
    scorers = (facts, *(facts.get(name) or {} for name in ("rewards", "second")))
    return math.fsum(scorer.get("cost", 0.0) for scorer in scorers)


@dataclass
class Meter:
    """Adds up what is held, sample by sample.

    Attributes:
        usage: of this attempt and those before it.
    """

    usage: Usage
    _last: float = field(default_factory=time.monotonic)

    def add(self, cpus: float, gpus: float, gib: float) -> None:
        """This was held since the last sample."""
        now = time.monotonic()
        spent, self._last = now - self._last, now
        held = Usage(spent, cpus * spent, gpus * spent, gib * spent, gib)
        self.usage += held


class Recorder:
    """Measures the stages of a job.

    Args:
        cluster: where the job runs. On one that others use too, what they held when the job began is left out.
    """

    def __init__(self, cluster: Cluster | None) -> None:
        self._cluster = cluster
        self._others = (0.0, 0.0) if cluster is None or cluster.local else _handed_out()

    @contextlib.contextmanager
    def measure(self, folder: Path) -> Iterator[Meter]:
        """Measure the block; attempts that were cut short before are added from what they left in `folder`."""
        meter = Meter(_earlier(folder) + Usage(attempts=1, nodes=self._cluster.nodes if self._cluster else 1))
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(meter, folder, stop), daemon=True)
        thread.start()
        try:
            yield meter
        except BaseException:
            _end(stop, thread)
            # A full disk is what ended it, perhaps.
            with contextlib.suppress(OSError):
                write_json(folder / ATTEMPTS, asdict(meter.usage))
            raise
        _end(stop, thread)
        (folder / ATTEMPTS).unlink(missing_ok=True)

    def _watch(self, meter: Meter, folder: Path, stop: threading.Event) -> None:
        began = saved = time.monotonic()
        ended = False
        while not ended:
            # Often at first, so that short stages are seen; seldom later, so that long ones are not slowed.
            ended = stop.wait(min(2.0, max(0.1, (time.monotonic() - began) / 10)))
            # Watching must never end a job: what cannot be seen (a cluster that is going down) counts as not held.
            with contextlib.suppress(Exception):
                meter.add(*self._held(), self._gib())
            if time.monotonic() - saved > SAVE_S and not ended:
                saved = time.monotonic()
                with contextlib.suppress(OSError):
                    write_json(folder / ATTEMPTS, asdict(meter.usage))

    def _held(self) -> tuple[float, float]:
        cpus, gpus = (max(0.0, now - before) for now, before in zip(_handed_out(), self._others, strict=True))
        cpus += DRIVER_CPUS
        # A Ray that this process started hands out more CPUs than the machine has.
        most = self._cluster.cpus if self._cluster is not None and self._cluster.local else cpus
        return min(cpus, most), gpus

    def _gib(self) -> float:
        here = psutil.Process()
        if self._cluster is None or self._cluster.local:
            others = here.children(recursive=True)
        else:
            # Ray does not say whose job a worker serves.
            titles = ((one, one.info["name"] or "") for one in psutil.process_iter(["name"]))
            others = [one for one, title in titles if title.startswith("ray::") and "IDLE" not in title]
        return sum(_resident(one) for one in (here, *others)) / 2**30


def _resident(process: Any) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _handed_out() -> tuple[float, float]:
    """CPUs and GPUs that Ray has given to actors and tasks."""
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
