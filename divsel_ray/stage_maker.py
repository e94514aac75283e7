"""How a stage is found or built: its identity, its commit, its resource usage, and the notifications."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from divsel_ray.config import Config
from divsel_ray.data.inputs import find_inputs
from divsel_ray.failures import explained
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.stage_names import kind_of
from divsel_ray.store import Stage, Store
from divsel_ray.usage import FACT, Recorder, paid_to_servers
from divsel_ray.watch import Metered, Watchers

VERSIONS = {
    "pool": 5,
    "clean": 1,
    "embed": 2,
    "cluster": 3,
    "reward": 1,
    "quality": 1,
    "semantic": 1,
    "draw": 4,
    "diversity": 1,
    "train": 3,
    "generate": 4,
    "score": 2,
    "weights": 3,
    "rows": 1,
    "cell": 1,
}
"""Incremented with every change of a stage's output."""


@dataclass
class StageMaker:
    """A job's settings and folder, and the stages it has gone through.

    Attributes:
        config: the whole configuration.
        store: the run folder.
        progress: receives messages and progress for the user.
        cluster: the available resources; None only in a dry job.
        dry: whether to list the stages without building any.
        stages: the stages seen so far, in order, each with whether it was already committed.
        watchers: notified of every stage, including cached ones.
    """

    config: Config
    store: Store
    progress: Progress
    cluster: Cluster | None
    dry: bool = False
    stages: list[tuple[Stage, bool]] = field(default_factory=list)
    watchers: Watchers = field(default_factory=Watchers)

    def __post_init__(self) -> None:
        self.inputs = find_inputs(self.config.pool.data, "pool.data")
        if not self.dry:
            self.progress = Metered(self.progress)
            self._recorder = Recorder(self.cluster)

    @property
    def hardware(self) -> Cluster:
        """The cluster of a job that runs."""
        if self.cluster is None:
            raise RuntimeError("a dry job builds no stage")
        return self.cluster

    def make(
        self,
        name: str,
        config: Mapping[str, Any],
        inputs: Sequence[str],
        build: Callable[[Path], dict[str, Any]],
        summary: Callable[[dict[str, Any]], str],
    ) -> Stage:
        """Find a committed stage, or build it and commit it with its resource usage.

        Args:
            name: name of its folder; its kind has an entry in `VERSIONS`.
            config: the settings that its output depends on.
            inputs: keys and digests of what it reads.
            build: writes into the folder and returns the stage's facts.
            summary: turns the facts into one line for the user.

        Raises:
            JobError: a disk is full, or processes or nodes were lost repeatedly; the folder can be resumed.
        """
        stage = self.store.stage(name, VERSIONS[kind_of(name)], config, inputs)
        cached = stage.committed
        self.stages.append((stage, cached))
        if self.dry:
            return stage
        if not cached:
            self.progress.start(name)
            with explained(name, stage.folder):
                folder = stage.start()
                with self._recorder.measure(folder) as meter:
                    facts = build(folder)
                stage.commit({**facts, FACT: asdict(replace(meter.usage, paid=paid_to_servers(facts)))})
        self.progress.finish(name, summary(stage.facts), cached=cached)
        self.watchers.stage(name, stage.facts)
        return stage
