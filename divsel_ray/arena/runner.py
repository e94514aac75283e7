"""Order of cells, and progress reports.

Cells of a single draw run first, several at a time if configured, in persistent processes. Iterative cells follow, seed by seed
and one at a time; their actors persist from cell to cell and may fill the cluster alone.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from divsel_ray.arena.cells import ArenaJob, Cell, run_cell
from divsel_ray.arena.contenders import Contender, config_of, long_epochs
from divsel_ray.arena.ground import Ground, Grounds
from divsel_ray.arena.worker import Bench
from divsel_ray.config import Config
from divsel_ray.config.arena import Arena
from divsel_ray.progress import Progress, Silent
from divsel_ray.report.html import duration

STAGE = "arena"
_Chain = Sequence[tuple[Contender, int]]
"""Cells that share actors or a draw."""


@dataclass
class Runner:
    """Runs the cells.

    Attributes:
        arena: settings and job.
        contenders: contenders of the arena.
        grounds: inputs of the cells.
        bench: workers that train and measure.
        progress: receives progress reports.
    """

    arena: Arena
    contenders: Sequence[Contender]
    grounds: Grounds
    bench: Bench
    progress: Progress
    _cells: list[Cell] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seconds: float = 0.0
    _units: float = 0.0
    _long: int = 0

    def run(self) -> list[Cell]:
        """Run all cells and return them, in no particular order."""
        seeds = self.arena.settings.seeds
        grounds = [self.grounds.of_seed(seed) for seed in seeds]
        self._long = long_epochs(self.arena.refine, grounds[0].budget, grounds[0].k)
        self.progress.start(STAGE)
        self._each(self._static())
        iterative = [[(one, seed) for one in self.contenders if one.kind == "iterative"] for seed in seeds]
        # Greedy completions do not depend on the seed with which the actors were started.
        greedy = self.arena.refine.generate.temperature == 0
        for chain in [list(itertools.chain.from_iterable(iterative))] if greedy else iterative:
            self._chain(chain)
        self.progress.finish(STAGE, f"{len(self._cells)} cells", cached=not self._units)
        return self._cells

    def _static(self) -> Sequence[_Chain]:
        """The untuned model, and the cells of a single draw by seed, with those that share a draw in one chain."""
        base, *trained = [one for one in self.contenders if one.kind != "iterative"]
        samplers = dict.fromkeys(one.sampler for one in trained)
        return [[(base, self.arena.settings.seeds[0])]] + [
            [(one, seed) for one in trained if one.sampler == sampler]
            for seed in self.arena.settings.seeds
            for sampler in samplers
        ]

    def _each(self, chains: Sequence[_Chain]) -> None:
        """Run chains, `parallel` at a time; the first failure stops the others."""
        if self.bench.size == 1:
            for chain in chains:
                self._chain(chain)
            return
        with ThreadPoolExecutor(self.bench.size) as threads:
            waiting = [threads.submit(self._chain, chain) for chain in chains]
            try:
                for done in as_completed(waiting):
                    done.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                self.bench.kill()
                raise

    def _chain(self, chain: _Chain) -> None:
        """Run cells one after another: shared stages are made once, and actors persist."""
        last: ArenaJob | None = None
        try:
            for contender, seed in chain:
                ground = self.grounds.of_seed(seed)
                config = self._config(contender, seed, ground)
                job = ArenaJob(config, self.grounds.store, Silent(), self.grounds.cluster, bench=self.bench)
                job.take_stream(last)
                last = job
                self._cell(contender, job, ground)
        finally:
            if last is not None:
                last.end()

    def _cell(self, contender: Contender, job: ArenaJob, ground: Ground) -> None:
        began = time.monotonic()
        cell = run_cell(contender, job, ground, self.bench)
        cached = all(found for _, found in job.stages)
        with self._lock:
            self._cells.append(cell)
            if not cached:
                self._seconds += time.monotonic() - began
                self._units += self._unit(contender)
            self._tell(contender, cell, cached)

    def _tell(self, contender: Contender, cell: Cell, cached: bool) -> None:
        """Update the progress bar, and print a line for each newly made cell."""
        done, total = len(self._cells), len(self._all())
        self.progress.advance(done, total, "cells")
        if cached:
            return
        met = {(one.contender, one.seed) for one in self._cells}
        left = sum(self._unit(one) for one, seed in self._all() if (one.name, seed) not in met)
        estimate = f"; about {duration(left * self._seconds / self._units / self.bench.size)} left" if left else ""
        seed = "" if cell.seed is None else f", seed {cell.seed}"
        self.progress.note(f"{done} of {total} cells: {contender.title}{seed}: loss {cell.loss:.4f}{estimate}")

    def _all(self) -> list[tuple[Contender, int | None]]:
        """All cells to run."""
        seeds = self.arena.settings.seeds
        return [(one, seed) for one in self.contenders for seed in (seeds if one.kind != "base" else [None])]

    def _unit(self, contender: Contender) -> float:
        """Approximate cost of a cell, in epochs over the budget."""
        if contender.kind == "base":
            return 0.5
        return 0.5 + (self._long if contender.long or contender.kind == "iterative" else self.arena.refine.train.epochs)

    def _config(self, contender: Contender, seed: int, ground: Ground) -> Config:
        epochs = self._long if contender.long else self.arena.refine.train.epochs
        return config_of(contender, self.arena, self.grounds.job_of_pool(ground.rows), seed, epochs)
