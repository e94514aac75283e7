"""One cell, a contender with one seed: its draw, training, losses and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from divsel_ray.arena.contenders import Contender
from divsel_ray.arena.ground import Ground, marks_of
from divsel_ray.arena.pool import describe_rows
from divsel_ray.arena.spending import spent_by
from divsel_ray.arena.worker import LOSSES, Bench
from divsel_ray.config import Config
from divsel_ray.errors import JobError
from divsel_ray.evaluate.measures import read_losses
from divsel_ray.pipeline import refine
from divsel_ray.progress import Silent
from divsel_ray.rounds import RefiningJob
from divsel_ray.store import Stage
from divsel_ray.tasks import run_tasks
from divsel_ray.train.stage import Round, trained_folder


@dataclass
class ArenaJob(RefiningJob):
    """Job of a cell: it trains on the arena's bench and leaves its generators and scorers to the next cell."""

    bench: Bench | None = None

    def fine_tune(self, round_: Round, folder: Path) -> dict[str, Any]:
        """Train in one of the bench's persistent workers, if possible."""
        if self.bench is None or not self.bench.trains_here:
            return super().fine_tune(round_, folder)
        return self.bench.train(round_, self.refinement.train, folder)

    def generate(self, number: int, draw: Stage, trained: Stage | None, reward: Stage | None) -> Stage:
        """Generate like any job, after closing the bench if the cluster cannot hold it along with generators and scorers."""
        if self.bench is not None and not self._holds_all(self.bench.size):
            self.bench.close()
        return super().generate(number, draw, trained, reward)

    def _holds_all(self, trainers: int) -> bool:
        """Whether the cluster can hold that many trainers along with the generators and scorers of a draw."""
        generate, scorers = self.refinement.generate, [self.reward_config, self.refinement.second]
        generators = self.hardware.count(generate.workers, math.ceil(self.config.budget / generate.shard_size))
        groups = [(self.refinement.train.workers, trainers), (generate.workers, generators)]
        return self.hardware.holds_together(*groups, *((one.workers, 1) for one in scorers if one is not None))

    def close(self) -> None:
        """Keep the actors for the next cell; `take_stream` passes them on."""

    def take_stream(self, other: ArenaJob | None) -> None:
        """Take over the actors of another cell."""
        self._stream = other._stream if other is not None else None

    def end(self) -> None:
        """Stop the actors."""
        super().close()


@dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        contender: name of the contender.
        seed: None for the untuned model.
        stage: committed stage of the cell.
    """

    contender: str
    seed: int | None
    stage: Stage

    @property
    def facts(self) -> dict[str, Any]:
        """Results of the cell."""
        return self.stage.facts

    def row_losses(self) -> np.ndarray:
        """(n,) nats per token of the evaluation rows, sorted by row id."""
        nats, tokens = read_losses(self.stage.folder / LOSSES)
        return nats / np.maximum(tokens, 1)

    @property
    def loss(self) -> float:
        """Mean of `row_losses`."""
        return float(self.row_losses().mean())


def run_cell(contender: Contender, job: ArenaJob, ground: Ground, bench: Bench) -> Cell:
    """Draw, train and measure.

    Raises:
        JobError: the selection does not match the arena's budget, or a stage failed.
    """
    if contender.kind == "base":
        return _measured(contender, job, None, None, ground, bench)
    first = len(job.stages)
    if contender.kind == "iterative":
        drawn = refine(job, ground.budget, ground.sources, ground.reward)[-1]
        trained = next(stage for stage, _ in reversed(job.stages) if stage.name.endswith("/train"))
    else:
        drawn = job.draw(None, ground.budget, ground.sources, before=None)
        trained = job.train(None, drawn, before=None)
    check_budget(contender.name, drawn.facts, ground.budget, job.config)
    # Stages shared with another cell count towards the cost of both.
    spent = spent_by([stage for stage, _ in job.stages[first:]], job.config, job.hardware)
    return _measured(contender, job, drawn, trained, ground, bench, spent)


def _measured(
    contender: Contender,
    job: ArenaJob,
    drawn: Stage | None,
    trained: Stage | None,
    ground: Ground,
    bench: Bench,
    spent: Mapping[str, float] | None = None,
) -> Cell:
    """Make the cell's stage of losses and results."""

    def build(folder: Path) -> dict[str, Any]:
        """Measure the trained model, and describe its training rows."""
        model = trained_folder(trained.folder, job.refinement.train) if trained else None
        bench.measure(model, folder)
        facts: dict[str, Any] = {"contender": contender.name, "seed": job.config.seed if trained else None}
        if drawn is not None and trained is not None:
            call = (marks_of(ground.rows), str(drawn.folder / "selected.parquet"))
            [known] = run_tasks(describe_rows, [call], Silent(), "cells")
            training = {name: trained.facts[name] for name in ("steps", "train_loss", "tokens")}
            size = {"rows": drawn.facts["rows"], "row_tokens": drawn.facts["tokens"]}
            facts |= {**size, **known, **(spent or {}), "training": training, "epochs": job.refinement.train.epochs}
        return facts

    seed = f"-seed-{job.config.seed}" if trained else ""
    inputs = [*ground.identity, *([drawn.key, trained.key] if drawn and trained else [])]
    name, identity = f"arena/{contender.name}{seed}/cell", {"contender": contender.name}
    stage = job.make(name, identity, inputs, build, lambda facts: "measured")
    return Cell(contender.name, job.config.seed if trained else None, stage)


def check_budget(name: str, facts: Mapping[str, Any], budget: int, config: Config) -> None:
    """Check that a contender used its budget, since only equal budgets are compared.

    Raises:
        JobError: the selection has fewer or more rows than the budget, or more tokens.
    """
    unit = config.budget_unit
    if facts[unit] > budget or (unit == "rows" and facts["rows"] < budget):
        raise JobError(f"{name}: selected {facts[unit]:,} {unit} of a budget of {budget:,}; an arena compares equal budgets only")
