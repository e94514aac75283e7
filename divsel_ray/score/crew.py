"""A crew of scoring actors that outlives a stage: it scores each shard of completions as soon as it is there.

One shard is one unit of work, done whole by one actor into one file. Shards are cut from the content, so the scores do
not depend on the number of actors, and a finished file is not made again after a kill.
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
    """The unit of work of a shard: its scores lie in `folder` under its name and its content's digest.

    With the digest, the scores of completions that were since generated anew are never taken for theirs.
    """
    return Part(str(shard), str(folder / f"{shard.stem}-{file_digest(shard)[:16]}.parquet"), "score")


class Crew:
    """Actors with one scorer, started when first needed and ended by `close`.

    A judge has no actors here: one process asks its server, within one limit of money, once all completions are there.

    Args:
        name: of the folder that holds its scores.
        section: of the configuration that describes it.
        spec: the scorer.
        workers: what each actor gets.
        cluster: where they run.
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
        """Actors running."""
        return len(self._actors)

    @property
    def resident(self) -> bool:
        """Whether it has actors that keep a model loaded."""
        return self._spec.computed

    def submit(self, shard: Path, folder: Path, limit: int) -> None:
        """Have a shard scored, unless that is done or under way.

        Args:
            shard: file of completions (columns as in `gaps.shard_exchanges`).
            folder: of the score stage.
            limit: actors at most.

        Raises:
            InputError, JobError: scoring an earlier shard failed; the sooner that is known, the better.
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
        """Have all shards scored and wait for it; their files (row_id, score) and what `score_pool` says of them.

        Raises:
            InputError: the scorer cannot be loaded.
            JobError: no place on the cluster, an actor failed, or not one completion could be scored.
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
        """End the actors and free what they hold."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._ready, self._running = [], [], {}

    def _hire(self) -> Any:
        gpus = self._cluster.gpus_per_worker(self.workers)
        arguments = [self._spec, max(1, int(self.workers.cpus))]
        actor = start_actor(ScoreActor, arguments, self.workers, gpus)
        # Asked before any unit: an actor answers in order, and a place must not seem missing while it scores.
        self._ready.append(actor.ready.remote())
        self._actors.append(actor)
        return actor

    def _settle(self, *, wait: bool, progress: Progress | None = None) -> None:
        """Take the answers of finished units, or of all."""
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
        """Answers once the actor has its place."""
        return True

    def score(self, part: Part) -> str:
        """Write the scores of a unit; says why the first exchange without one has none."""
        return str(score_part(part, self._load)["problem"])
