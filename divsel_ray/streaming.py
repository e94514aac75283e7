"""Completions and their scores: a fleet that generates, and crews that score each shard as soon as it is there.

Both stay loaded from round to round where the cluster holds them beside the training between; else each gives way to
what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divsel_ray.config import Workers
from divsel_ray.generate.stage import Fleet
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.score.crew import Crew

Group = tuple[Workers, int]
"""Actors of a kind, and how many of them."""


@dataclass(frozen=True)
class Stream:
    """What generates and scores, and what must fit beside it.

    Attributes:
        fleet: generates.
        crews: score, each by another scorer.
        training: workers of the fine-tuning between two rounds.
        cluster: where all of them run.
    """

    fleet: Fleet
    crews: Sequence[Crew]
    training: Workers
    cluster: Cluster

    def generate(self, prompts: Path, trained: str | None, folder: Path, scores: Path, progress: Progress) -> dict[str, Any]:
        """Complete prompts into `folder` (see `Fleet.generate`).

        Where the cluster holds fleet and crews together, every finished shard is scored into `scores` while the next ones
        are generated. The stage of scores needs only wait for what is missing.
        """
        limits = self._limits((self.fleet.workers, self.fleet.planned(prompts)))
        if limits is None:
            self._close_crews()

        def finished(shard: Path) -> None:
            """Have a shard scored, where crews have room."""
            for crew in self.crews if limits is not None else ():
                crew.submit(shard, scores, (limits or {}).get(crew.name, 1))

        facts = self.fleet.generate(prompts, trained, folder, progress, finished)
        if limits is None:
            self.fleet.close()
        return facts

    def score(self, shards: Sequence[Path], folder: Path, progress: Progress) -> dict[str, tuple[list[Path], dict[str, Any]]]:
        """Have all shards scored by every crew: files and facts by its name. What training has no room for is ended."""
        limits = self._limits((self.fleet.workers, self.fleet.size))
        scored = {}
        for crew in self.crews:
            limit = self._room(crew, []) if limits is None else limits.get(crew.name, 1)
            scored[crew.name] = crew.score(shards, folder, limit, progress)
            if limits is None:
                crew.close()
        self._make_room()
        return scored

    def close(self) -> None:
        """End all actors."""
        self.fleet.close()
        self._close_crews()

    def _close_crews(self) -> None:
        for crew in self.crews:
            crew.close()

    def _make_room(self) -> None:
        """End the crews, and then the fleet, where training has no room beside them."""
        fleet: Group = (self.fleet.workers, self.fleet.size)
        if not self.cluster.holds_together(self._training, fleet, *((crew.workers, crew.size) for crew in self.crews)):
            self._close_crews()
        if not self.cluster.holds_together(self._training, fleet):
            self.fleet.close()

    @property
    def _training(self) -> Group:
        return self.training, self.training.count or 1

    def _limits(self, fleet: Group) -> dict[str, int] | None:
        """Actors that each crew may have beside the fleet, and if possible the training; None where one has no room."""
        beside = self._limits_beside([fleet, self._training])
        return self._limits_beside([fleet]) if beside is None else beside

    def _limits_beside(self, others: list[Group]) -> dict[str, int] | None:
        limits = dict[str, int]()
        for crew in self.crews:
            if crew.resident:
                taken = [*others, *((known.workers, limits[known.name]) for known in self.crews if known.name in limits)]
                limits[crew.name] = self._room(crew, taken)
        return limits if all(limits.values()) else None

    def _room(self, crew: Crew, taken: Sequence[Group]) -> int:
        """The most actors of a crew that fit beside others, at most those that it is to have."""
        wanted = self.cluster.count(crew.workers, crew.workers.count or MOST)
        fitting = (count for count in range(wanted, 0, -1) if self.cluster.holds_together(*taken, (crew.workers, count)))
        return next(fitting, 0)


MOST = 1024
"""Actors of a crew, where the configuration does not say: the cluster is what limits them."""
