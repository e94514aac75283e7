"""One size of `bench_scale.py`: runs the job in its own process and measures every stage.

    python jobs/bench_scale_runs.py REQUEST.json

is that process, the driver: it starts Ray, runs the job and writes the report, and records the start and end of each stage and
its own peak memory. Its parent samples the memory of all processes meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_kmeans_contenders import Sample, sample_until_end

from divsel_ray.config import Config
from divsel_ray.errors import InputError, JobError
from divsel_ray.store import MANIFEST, Store, read_json, write_json
from divsel_ray.usage import usage_of

IDLE, RESULT, REPORT = "idle", "result", "report"
DRIVERS = (RESULT, REPORT)
"""Stages that the driver executes itself."""
ALONE = ("round-1/draw", "diversity", *DRIVERS)
"""Stages of a single task or of the driver, which more CPUs do not speed up."""
STAGES = ("pool", "embed", "cluster", "quality", *ALONE)
"""All stages, in order."""
SETTLE_SECONDS = 2.0
"""How long the driver sleeps before the job, so that its idle memory with Ray is sampled."""
_FIGURES, _CLOCK, _RUN = "figures.json", "clock.jsonl", "run"


@dataclass(frozen=True)
class Figure:
    """Measurements of one stage.

    Attributes:
        seconds: seconds from the end of the previous stage to its own, including its commit.
        parallel_seconds: the part in which all CPUs work; the rest belongs to the driver or to a single task.
        memory: peak bytes (proportional set size) of all processes above idle. It includes what libraries in waiting workers
            do not free.
        largest: peak bytes of the largest process except the driver.
        driver: peak resident bytes of the driver.
    """

    seconds: float
    parallel_seconds: float
    memory: int
    largest: int
    driver: int


# The driver


class Clock:
    """Writes a line for each stage; a `divsel_ray.progress.Progress`."""

    def __init__(self, path: Path) -> None:
        self._path, self._began = path, time.monotonic()
        self._started = self._began

    def note(self, text: str) -> None:
        """Write to the log of the process."""
        print(text, file=sys.stderr)

    def start(self, stage: str) -> None:
        """Mark the start; earlier work, such as digests of files, belongs to the driver."""
        self._started = time.monotonic()

    def advance(self, done: int, total: int, unit: str) -> None:
        """Ignore the progress within a stage."""

    def finish(self, stage: str, text: str, *, cached: bool) -> None:
        """Write the stage's line, and reset the peak memory."""
        ended = time.monotonic()
        line = {"stage": stage, "began": self._began, "started": self._started, "ended": ended, "cached": cached}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line | {"driver": _highest_resident()}) + "\n")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._began = self._started = time.monotonic()


def _highest_resident() -> int:
    """Peak bytes of this process since the last reset."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _drive(request: Path) -> None:
    from divsel_ray import run_job
    from divsel_ray.resources import connect

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    folder, config = request.parent, Config.model_validate(read_json(request))
    connect()
    clock = Clock(folder / _CLOCK)
    time.sleep(SETTLE_SECONDS)
    clock.finish(IDLE, "", cached=False)
    run_job(config, folder / _RUN, clock)
    clock.finish(RESULT, "", cached=False)
    # Not earlier, so that its libraries do not count towards the job.
    from divsel_ray.report.page import write_report

    write_report(folder / _RUN)
    clock.finish(REPORT, "", cached=False)


def _end_with(parent: int) -> None:
    """End with the parent: an orphaned driver would only interfere with the next attempt."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


# The observer


def measure(config: Config, folder: Path, told: Callable[[str, Figure], None]) -> tuple[dict[str, Figure], int]:
    """Run a job in its own process, and return the figures of its stages and the bytes of all processes when idle.

    Figures are stored in `folder` as stages end: the same call resumes after a kill. An interrupted stage starts from scratch,
    so that its time is complete.

    Args:
        config: the job.
        folder: output folder.
        told: called with each finished stage.

    Raises:
        InputError: the job's input or settings are wrong.
        JobError: the job failed; the message contains its last line of output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = _read_figures(folder)
    drop_unmeasured(folder / _RUN, known)
    write_json(folder / "request.json", config.model_dump(mode="json"))
    (folder / _CLOCK).write_text("", encoding="utf-8")
    samples: list[Sample] = []
    idle, lines = 0, 0
    for sample in _watch(folder):
        samples.append(sample)
        ended = _lines(folder)
        for line in ended[lines:]:
            if line["stage"] == IDLE:
                idle = max(sample.size for sample in within(samples, line["began"], line["ended"]))
            elif not line["cached"]:
                known[line["stage"]] = figure_of(line, samples, idle, _built(folder / _RUN, line["stage"]))
                write_json(folder / _FIGURES, {name: asdict(figure) for name, figure in known.items()})
                told(line["stage"], known[line["stage"]])
        lines = len(ended)
    return known, idle


def _watch(folder: Path) -> Iterator[Sample]:
    """Samples while the driver runs, and a final empty one if it succeeded."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Prestarted workers would count as idle memory.
    environment |= {"RAY_prestart_worker_first_driver": "0"}
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, str(Path(__file__).resolve()), str(folder / "request.json")]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield from sample_until_end(process)
        finally:
            process.terminate()
            code = process.wait()
    if code != 0:
        raise failure(code, (folder / "log.txt").read_text(encoding="utf-8", errors="replace"))
    yield Sample(time.monotonic(), 0)


def failure(code: int, log: str) -> InputError | JobError:
    """The error of a failed driver, from the last line of its log: the uncaught exception."""
    said = next(reversed(log.strip().splitlines()), "no output")
    kind = InputError if said.startswith(f"{InputError.__module__}.{InputError.__name__}:") else JobError
    return kind(f"the job ended with code {code}: {said}")


def _lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / _CLOCK).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _read_figures(folder: Path) -> dict[str, Figure]:
    path = folder / _FIGURES
    return {name: Figure(**figure) for name, figure in read_json(path).items()} if path.exists() else {}


def drop_unmeasured(run: Path, known: Mapping[str, Figure]) -> None:
    """Remove the folders of stages without figures, whether finished or not.

    Raises:
        JobError: another process is working on the run.
    """
    # The folder of the draw is inside that of its round.
    kept = {name.partition("/")[0] for name in known}
    with Store(run).lock():
        for folder in run.glob("*/"):
            if folder.name not in kept:
                shutil.rmtree(folder)


def figure_of(line: Mapping[str, Any], samples: Sequence[Sample], idle: int, built: float) -> Figure:
    """The figures of a stage, from its line in the clock file, the memory samples, and the seconds it was being built."""
    seen = within(samples, line["began"], line["ended"])
    memory, largest = max(sample.size for sample in seen), max(sample.largest for sample in seen)
    parallel = 0.0 if line["stage"] in ALONE else built
    return Figure(line["ended"] - line["began"], parallel, max(0, memory - idle), largest, line["driver"])


def _built(run: Path, stage: str) -> float:
    """Seconds a stage was being built, without its commit; 0 for steps that are not stages."""
    manifests = sorted(run.glob(f"{stage}/*/{MANIFEST}"))
    usage = usage_of(read_json(manifests[-1])["facts"]) if manifests else None
    return usage.wall_s if usage else 0.0


def within(samples: Sequence[Sample], began: float, ended: float) -> list[Sample]:
    """The samples of a window; if there are none, the last one before its end, or else the very first."""
    before = [sample for sample in samples if sample.moment <= ended]
    return [sample for sample in before if sample.moment >= began] or before[-1:] or [samples[0]]


if __name__ == "__main__":
    _drive(Path(sys.argv[1]))
