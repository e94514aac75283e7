"""Completions and their scores: a fleet that generates, and crews that score each shard as soon as it is finished.

Both stay loaded from round to round if the cluster has room for them along with the training in between; otherwise each is
stopped to make room for the next step.
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
"""Workers of one kind, and their number."""


@dataclass(frozen=True)
class Stream:
    """The actors that generate and score, and the training that must fit alongside.

    Attributes:
        fleet: the actors that generate.
        crews: the actors that score, one crew per scorer.
        training: workers of the fine-tuning between two rounds.
        cluster: the cluster that all of them run on.
    """

    fleet: Fleet
    crews: Sequence[Crew]
    training: Workers
    cluster: Cluster

    def generate(self, prompts: Path, trained: str | None, folder: Path, scores: Path, progress: Progress) -> dict[str, Any]:
        """Complete prompts into `folder` (see `Fleet.generate`).

        If the cluster has room for fleet and crews together, every finished shard is scored into `scores` while the next ones
        are generated. The score stage then only waits for the missing ones.
        """
        limits = self._limits((self.fleet.workers, self.fleet.planned(prompts)))
        if limits is None:
            self._close_crews()

        def finished(shard: Path) -> None:
            """Submit a shard for scoring, if the crews have room."""
            for crew in self.crews if limits is not None else ():
                crew.submit(shard, scores, (limits or {}).get(crew.name, 1))

        facts = self.fleet.generate(prompts, trained, folder, progress, finished)
        if limits is None:
            self.fleet.close()
        return facts

    def score(self, shards: Sequence[Path], folder: Path, progress: Progress) -> dict[str, tuple[list[Path], dict[str, Any]]]:
        """Score all shards with every crew and stop actors that training has no room for; returns files and facts by crew."""
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
        """Stop all actors."""
        self.fleet.close()
        self._close_crews()

    def _close_crews(self) -> None:
        for crew in self.crews:
            crew.close()

    def _make_room(self) -> None:
        """Stop the crews, and then the fleet, if training has no room alongside them."""
        fleet: Group = (self.fleet.workers, self.fleet.size)
        if not self.cluster.holds_together(self._training, fleet, *((crew.workers, crew.size) for crew in self.crews)):
            self._close_crews()
        if not self.cluster.holds_together(self._training, fleet):
            self.fleet.close()

    @property
    def _training(self) -> Group:
        return self.training, self.training.count or 1

    def _limits(self, fleet: Group) -> dict[str, int] | None:
        """Maximum actors of each crew alongside the fleet, and the training if possible; None if one crew has no room."""
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
        """The largest number of a crew's actors that fit alongside others, at most the number wanted."""
        wanted = self.cluster.count(crew.workers, crew.workers.count or MOST)
        fitting = (count for count in range(wanted, 0, -1) if self.cluster.holds_together(*taken, (crew.workers, count)))
        return next(fitting, 0)


MOST = 1024
"""Actors of a crew if the configuration sets no count: only the cluster limits them."""
