"""One trial on Ray: a small process that Ray Tune starts and may stop, and a separate process for the job.

Ray Tune puts its trials into placement groups, and everything that a trial starts would have to fit into its group. The job
therefore runs in an actor outside the group; it ends with the trial that owns it.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from divsel_ray.config.tuning import Point, TuningConfig
from divsel_ray.errors import InputError, JobError, last_line
from divsel_ray.failures import reason_of
from divsel_ray.pipeline import Surroundings, run_job
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster
from divsel_ray.store import Store, digest, write_json
from divsel_ray.tune.measures import measure
from divsel_ray.tune.record import OBJECTIVE, ROUND, SHARED, STATE, TRIALS, read_record, record_file

LOCK_PATIENCE_S = 60.0
"""How long a trial waits for its folder: the process of a killed search may take a moment to exit."""
_POLL_SECONDS = 0.5
LEAVING_S = 60
"""How long Ray Tune waits for a stopped trial before it reuses the trial's process; Ray's default is two seconds."""


@dataclass(frozen=True)
class Setting:
    """What all trials of a search have in common.

    Attributes:
        tuning: the search.
        out: folder of the search, accessible to every node.
        share: each trial's share of the cluster.
        name: name of the search, which tells searches in the same folder apart.
    """

    tuning: TuningConfig
    out: Path
    share: Cluster
    name: str

    def folder(self, point: Point) -> Path:
        """The run folder of a trial; it is the same for the same settings of the same job."""
        return self.out / TRIALS / digest(self.tuning.config_of(point).model_dump(mode="json", exclude_unset=True))[:8]

    @property
    def in_rounds(self) -> bool:
        """Whether trials are stopped between rounds."""
        return self.tuning.scheduler == "asha"


class TrialProcess:
    """Runs the jobs of trials one after the other; after each reported round a job waits until it is told to continue.

    Args:
        setting: what the trials of the search have in common.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._reports: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._verdicts: queue.Queue[bool] = queue.Queue()

    def run(self, point: Point) -> None:
        """Run the job of a trial and report its figures.

        Raises:
            InputError: its settings contradict each other.
            JobError: the job failed; the message is one line.
        """
        try:
            self._run(point)
        finally:
            # Otherwise the caller of `next_report` would wait forever.
            self._reports.put(None)

    def _run(self, point: Point) -> None:
        setting = self._setting
        self._config, self._folder = setting.tuning.config_of(point), setting.folder(point)
        # Of trials with equal settings only one works at a time; the others wait for as long as it takes and use its figures.
        with held(setting.out / STATE / f"{setting.name}-turns" / self._folder.name):
            known = read_record(self._folder, setting.name)
            figures = known["figures"] if known.get("state") == "finished" else self._work(point)
            self._report(self._rounds, figures[setting.tuning.objective])

    def _work(self, point: Point) -> dict[str, float]:
        """Compute the figures, keeping the record up to date.

        Raises:
            JobError: the job failed; the message is one line.
        """
        with held(self._folder, LOCK_PATIENCE_S):
            pass
        began, self._record = time.monotonic(), {"settings": dict(point), "state": "running", "rounds": []}
        try:
            figures = self._figures()
            self._note(state="finished", figures=figures, seconds=round(time.monotonic() - began, 1))
            return figures
        except Exception as error:
            said = str(error) if isinstance(error, InputError | JobError) else reason_of(error) or last_line(error)
            self._note(state="failed", error=said, seconds=round(time.monotonic() - began, 1))
            raise JobError(said) from error

    @property
    def _rounds(self) -> int:
        return self._config.refine.rounds if self._config.refine else 1

    def _figures(self) -> dict[str, float]:
        setting, folder = self._setting, self._folder
        shared = setting.out / SHARED
        self._note()
        run_job(self._config, folder, beside=Surroundings(shared, setting.share, [self]))
        return measure(setting.tuning, self._config, Store(folder, shared), setting.share, Silent())

    def stage(self, name: str, figures: Mapping[str, float]) -> None:
        """A stage is complete: nothing to do."""

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Record a round, and report it if trials are stopped between rounds; the last one is reported at the end of the run."""
        self._note(rounds=[*self._record["rounds"], {ROUND: number, **figures}])
        objective = figures.get(self._setting.tuning.objective)
        if self._setting.in_rounds and objective is not None and number < self._rounds:
            self._report(number, objective)

    def close(self) -> None:
        """No more events follow: nothing to do."""

    def _report(self, number: int, objective: float) -> None:
        """Report the objective after a round and wait for `go_on`, because a left-over `go_on` would release the next trial."""
        self._reports.put({OBJECTIVE: objective, ROUND: number})
        self._verdicts.get()

    def _note(self, **facts: Any) -> None:
        self._record |= facts
        write_json(record_file(self._folder, self._setting.name), self._record)

    def next_report(self) -> dict[str, Any] | None:
        """Wait for the next report; None after the last one."""
        return self._reports.get()

    def go_on(self) -> None:
        """Let the job continue after a report."""
        self._verdicts.put(True)


def trainable(setting: Setting) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune calls for each trial."""

    def trial(point: dict[str, Any]) -> None:
        """Run a trial in a process that Ray Tune reuses for the next one."""
        # A stopped trial that takes longer than this to end, as on a busy machine, would make the next one fail.
        os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", str(LEAVING_S))
        follow(setting, decoded(setting.tuning, point))

    return trial


def decoded(tuning: TuningConfig, point: Mapping[str, Any]) -> Point:
    """Decode a point of Ray Tune, which identifies the values of a choice by their index."""
    choices = {place: dimension.choice for place, dimension in tuning.search.items()}
    return {place: chosen[value] if (chosen := choices[place]) is not None else value for place, value in point.items()}


def follow(setting: Setting, point: Point) -> None:
    """Run the job of a trial and forward its reports to Ray Tune, which stops a trial by ending it within a report."""
    from ray import tune

    process = _PROCESSES.pop(setting.name, None) or _start(setting)
    try:
        done = process.run.remote(point)
        while (report := ray.get(process.next_report.remote())) is not None:
            tune.report(report)
            ray.get(process.go_on.remote())
        ray.get(done)
    except BaseException:
        ray.kill(process)
        raise
    _PROCESSES[setting.name] = process


_PROCESSES: dict[str, Any] = {}
"""The job process of the last trial in this process: the next trial reuses it and need not load everything again."""


def _start(setting: Setting) -> Any:
    process = ray.remote(num_cpus=0, max_concurrency=3)(TrialProcess).options(scheduling_strategy="DEFAULT")
    return process.remote(setting)


@contextlib.contextmanager
def held(folder: Path, patience: float = math.inf) -> Iterator[None]:
    """Hold the folder's lock, waiting until it is free.

    Raises:
        JobError: the lock is still held by another process after `patience` seconds.
    """
    end = time.monotonic() + patience
    with contextlib.ExitStack() as lock:
        while True:
            try:
                lock.enter_context(Store(folder).lock())
                break
            except JobError:
                if time.monotonic() > end:
                    raise
                time.sleep(_POLL_SECONDS)
        yield
