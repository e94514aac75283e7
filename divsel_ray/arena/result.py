"""Results from cells: means with intervals, and differences paired by seed and evaluation row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from divsel_ray.arena.bootstrap import LEVEL, Interval, interval, paired
from divsel_ray.arena.cells import Cell
from divsel_ray.arena.contenders import BASE, LONG, RANDOM, SHUFFLED, Contender
from divsel_ray.arena.ground import Grounds
from divsel_ray.arena.pool import EVALUATION
from divsel_ray.config.arena import Arena
from divsel_ray.store import write_json

RECORD = "arena.json"


@dataclass(frozen=True)
class Standing:
    """Result of one contender over all seeds.

    Attributes:
        contender: the contender.
        loss: mean nats per completion token over seeds and evaluation rows; lower is better.
        losses: the same by seed (one entry for the untuned model, which has no seeds).
        differences: this contender's loss minus that of another, by the other's name; below 0 is better than the other.
        covered: share of the pool's labels among the selected rows; None for the untuned model.
        spoiled: share of selected rows with a fault introduced by the arena; None if it introduced none.
        epochs: epochs of each training.
        trained_tokens: tokens of the last training, all epochs, mean over seeds.
        cpu_s, gpu_s: seconds of its draws, trainings and rounds, mean over seeds.
    """

    contender: Contender
    loss: Interval
    losses: Sequence[float]
    differences: Mapping[str, Interval]
    covered: Interval | None = None
    spoiled: Interval | None = None
    epochs: int = 0
    trained_tokens: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0

    @property
    def title(self) -> str:
        """The contender in words."""
        return self.contender.title

    @property
    def verdict(self) -> str:
        """Comparison with random at equal budget."""
        found = self.differences.get(RANDOM)
        if found is None:
            return ""
        if not found.excludes_zero:
            return "not told apart from random"
        return "better than random" if found.high < 0 else "worse than random"


@dataclass(frozen=True)
class Task:
    """Evaluation rows of one label.

    Attributes:
        label: as in the data; untrusted text.
        rows: number of rows.
        losses: mean loss of each contender, by its name.
    """

    label: str
    rows: int
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """An arena's outcome.

    Attributes:
        standings: results of the contenders, best first.
        tasks: results by label, largest first.
        pool: facts of the arena's pool.
        preparation: CPU and GPU seconds of the inputs of draws, by stage; computed once for all, clusters possibly for each seed.
        budget: number of rows or tokens, according to `unit`.
        unit: rows or tokens.
        k: number of clusters.
        references: names of the contenders used as references for differences.
        settings: settings of the arena.
        job: configuration of the arena's job.
    """

    standings: Sequence[Standing]
    tasks: Sequence[Task]
    pool: Mapping[str, Any]
    preparation: Mapping[str, Mapping[str, float]]
    budget: int
    unit: str
    k: int
    references: Sequence[str]
    settings: Mapping[str, Any]
    job: Mapping[str, Any]

    @property
    def of(self) -> dict[str, Standing]:
        """Standings by name."""
        return {one.contender.name: one for one in self.standings}

    @property
    def best(self) -> Standing:
        """The lowest loss at equal budget, excluding the untuned model and random trained as long as iterative contenders."""
        return next(one for one in self.standings if one.contender.kind != "base" and not one.contender.long)


def summarise(arena: Arena, contenders: Sequence[Contender], cells: Sequence[Cell], grounds: Grounds) -> Result:
    """Compute the result of an arena from its cells."""
    seeds = arena.settings.seeds
    of_contender = {
        one.name: sorted((cell for cell in cells if cell.contender == one.name), key=lambda cell: _place(cell, seeds))
        for one in contenders
    }
    losses = {name: np.stack([cell.row_losses() for cell in found]) for name, found in of_contender.items()}
    ground = grounds.of_seed(seeds[0])
    references = [name for name in (RANDOM, LONG, SHUFFLED, arena.job.select.sampler, BASE) if name in losses]
    standings = [_standing(one, of_contender[one.name], losses, references, arena, grounds) for one in contenders]
    labels = pq.read_table(ground.rows.folder / EVALUATION, columns=["label"])["label"].to_pylist()
    return Result(
        sorted(standings, key=lambda one: one.loss.mean),
        tasks_of(labels, losses),
        ground.rows.facts,
        ground.preparation,
        ground.budget,
        arena.job.budget_unit,
        ground.k,
        references,
        arena.settings.model_dump(mode="json"),
        arena.job.model_dump(mode="json"),
    )


def tasks_of(labels: Sequence[str], losses: Mapping[str, np.ndarray]) -> list[Task]:
    """Mean losses by label, the label with the most rows first.

    Args:
        labels: (n,) labels of the evaluation rows.
        losses: (s, n) losses of each contender.
    """
    names, at = np.unique(np.array(labels, object).astype(str), return_inverse=True)
    found = []
    for number, name in enumerate(names):
        columns = np.flatnonzero(at == number)
        found.append(Task(str(name), len(columns), {one: float(table[:, columns].mean()) for one, table in losses.items()}))
    return sorted(found, key=lambda one: (-one.rows, one.label))


def _place(cell: Cell, seeds: Sequence[int]) -> int:
    return -1 if cell.seed is None else seeds.index(cell.seed)


def _standing(
    contender: Contender,
    cells: Sequence[Cell],
    losses: Mapping[str, np.ndarray],
    references: Sequence[str],
    arena: Arena,
    grounds: Grounds,
) -> Standing:
    table, draws, seed = losses[contender.name], arena.settings.bootstrap, arena.job.seed
    differences = {name: paired(table, losses[name], draws, seed) for name in references if name != contender.name}
    loss, by_seed = interval(table, draws, seed), table.mean(axis=1).tolist()
    if contender.kind == "base":
        return Standing(contender, loss, by_seed, differences)
    facts, ground = [cell.facts for cell in cells], grounds.of_seed(arena.settings.seeds[0])
    shares = np.array([[one["labels"] / ground.rows.facts["labels"], one["spoiled"] / one["rows"]] for one in facts])
    covered, spoiled = (interval(column[:, None], draws, seed).within(0, 1) for column in shares.T)
    spent = np.array([[one["training"]["tokens"], one["cpu_s"], one["gpu_s"]] for one in facts])
    return Standing(
        contender,
        loss,
        by_seed,
        differences,
        covered,
        spoiled if arena.settings.spoil else None,
        facts[0]["epochs"],
        *spent.mean(axis=0).tolist(),
    )


def write_result(result: Result, folder: Path) -> None:
    """Write `arena.json`."""
    standings = [{**asdict(one), "title": one.title, "verdict": one.verdict} for one in result.standings]
    write_json(folder / RECORD, {**asdict(result), "standings": standings, "level": LEVEL})
