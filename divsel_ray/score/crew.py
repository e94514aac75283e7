"""A crew of scoring actors that outlives a stage and scores each shard of completions as soon as it is written.

A shard is a unit of work, scored by one actor into one file. Shards depend on the content alone, so the scores do
not depend on the number of actors, and a finished file is not computed again after a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import ray

from divsel_ray.actors import answer_of, start_actor
from divsel_ray.config import Workers
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster, await_ready
from divsel_ray.score.judge_stage import rate_parts
from divsel_ray.score.parts import Part, count_part, score_part, summarise
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.store import file_digest


def shard_part(shard: Path, folder: Path) -> Part:
    """The unit of work of a shard: its scores are in `folder`, under the shard's name and the digest of its content.

    The digest prevents scores from being reused for completions that have since been regenerated.
    """
    return Part(str(shard), str(folder / f"{shard.stem}-{file_digest(shard)[:16]}.parquet"), "score")


class Crew:
    """Actors with the same scorer, started when first needed and ended by `close`.

    A judge has no actors here: one process sends all requests, within one spending limit, once all completions exist.

    Args:
        name: name of the folder with the scores.
        section: section of the configuration, for messages.
        spec: the scorer.
        workers: resources of each actor.
        cluster: cluster on which the actors run.
    """

    def __init__(self, name: str, section: str, spec: ScorerSpec, workers: Workers, cluster: Cluster) -> None:
        self.name, self.section, self.workers = name, section, workers
        self._spec, self._cluster = spec, cluster
        self._actors: list[Any] = []
        self._ready: list[Any] = []
        self._running: dict[str, tuple[Any, Any]] = {}
        self._problems: list[str] = []

    @property
    def size(self) -> int:
        """Number of running actors."""
        return len(self._actors)

    @property
    def resident(self) -> bool:
        """Whether the scorer needs actors that keep a model loaded."""
        return self._spec.computed

    def submit(self, shard: Path, folder: Path, limit: int) -> None:
        """Start scoring a shard, unless that is done or in progress.

        Args:
            shard: file of completions (columns as in `gaps.shard_exchanges`).
            folder: folder of the score stage.
            limit: largest number of actors.

        Raises:
            InputError, JobError: scoring an earlier shard failed, which is reported as early as possible.
        """
        self._settle(wait=False)
        part = shard_part(shard, folder / self.name)
        if not self.resident or part.target in self._running or Path(part.target).exists():
            return
        busy = [actor for actor, _ in self._running.values()]
        actor = min(self._actors, key=busy.count, default=None)
        if actor is None or (actor in busy and self.size < limit):
            actor = self._hire()
        self._running[part.target] = (actor, actor.score.remote(part))

    def score(self, shards: Sequence[Path], folder: Path, limit: int, progress: Progress) -> tuple[list[Path], dict[str, Any]]:
        """Score all shards and wait; returns their files (row_id, score) and the counts that `score_pool` returns.

        Raises:
            InputError: the scorer cannot be loaded.
            JobError: the cluster has no resources for an actor, an actor failed, or no completion could be scored.
        """
        parts = [shard_part(shard, folder / self.name) for shard in shards]
        files = [Path(part.target) for part in parts]
        if not self.resident:
            return files, rate_parts(parts, self._spec, self._cluster, self.workers, progress)
        for shard in shards:
            self.submit(shard, folder, limit)
        self._settle(wait=True, progress=progress)
        problem, self._problems = next(iter(self._problems), ""), []
        return files, summarise([count_part(part) | {"problem": problem} for part in parts])

    def close(self) -> None:
        """End the actors and free their resources."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._ready, self._running = [], [], {}

    def _hire(self) -> Any:
        gpus = self._cluster.gpus_per_worker(self.workers)
        arguments = [self._spec, max(1, int(self.workers.cpus))]
        actor = start_actor(ScoreActor, arguments, self.workers, gpus)
        # Queued before any unit: an actor answers in order, and must not seem to lack resources while it scores.
        self._ready.append(actor.ready.remote())
        self._actors.append(actor)
        return actor

    def _settle(self, *, wait: bool, progress: Progress | None = None) -> None:
        """Collect the results of finished units, or wait for all."""
        if wait and self._running:
            await_ready(self._ready, self.section, self.workers, self._cluster.placement_timeout_s)
        total = len(self._running)
        while self._running:
            tasks = {task: target for target, (_, task) in self._running.items()}
            done, _ = ray.wait(list(tasks), timeout=None if wait else 0)
            if not done:
                return
            answer = answer_of(done[0], f"{self.section}: {Path(tasks[done[0]]).name}")
            del self._running[tasks[done[0]]]
            self._problems += [answer] if answer else []
            if progress is not None:
                progress.advance(total - len(self._running), total, "shards")


class ScoreActor:
    """A scorer, loaded when first needed; a restarted actor loads it again."""

    def __init__(self, spec: ScorerSpec, threads: int) -> None:
        self._load = cache(partial(spec.load, threads))

    def ready(self) -> bool:
        """Return once the actor has its resources."""
        return True

    def score(self, part: Part) -> str:
        """Write the scores of a unit; returns why the first exchange without a score has none."""
        return str(score_part(part, self._load)["problem"])
