"""The order of cells, several at a time, and what happens when one fails; cells and actors are stand-ins."""

import threading
import time
from types import SimpleNamespace

import pytest

from divsel_ray.arena import runner as module
from divsel_ray.arena.contenders import contenders_of
from divsel_ray.arena.runner import Runner
from divsel_ray.config.arena import load_arena
from divsel_ray.errors import JobError
from divsel_ray.progress import Silent
from tests.arena.test_contenders import write


class FakeJob:
    """Stands in for a cell's job; knows whose actors it goes on with."""

    def __init__(self, config, *_, **__):
        self.config, self.stages, self.ended, self.actors = config, [(None, False)], False, self

    def take_stream(self, before):
        self.actors = before.actors if before is not None else self

    def end(self):
        self.actors.ended = True


class Notes(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


class Scene:
    """A runner whose cells take a hundredth of a second."""

    def __init__(self, monkeypatch, arena, fails=""):
        self.ran, self.jobs, self.busy, self.most, self.killed = [], [], 0, 0, False
        self._fails, self._lock = fails, threading.Lock()
        ground = SimpleNamespace(budget=12, k=2, rows=None)
        grounds = SimpleNamespace(of_seed=lambda seed: ground, job_of_pool=lambda rows: arena.job, store=None, cluster=None)
        bench = SimpleNamespace(size=arena.settings.parallel, kill=self.kill)
        monkeypatch.setattr(module, "ArenaJob", FakeJob)
        monkeypatch.setattr(module, "run_cell", self.cell)
        self.notes = Notes()
        self.runner = Runner(arena, contenders_of(arena), grounds, bench, self.notes)

    def kill(self):
        self.killed = True

    def cell(self, contender, job, ground, bench):
        with self._lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
            self.jobs.append((contender.name, job))
        time.sleep(0.01)
        with self._lock:
            self.busy -= 1
            self.ran.append((contender.name, job.config.seed))
        if contender.name == self._fails:
            raise JobError("no room")
        seed = None if contender.kind == "base" else job.config.seed
        return SimpleNamespace(contender=contender.name, seed=seed, loss=1.0)


@pytest.fixture
def arena(tmp_path):
    return lambda *changes: load_arena(write(tmp_path), changes)


def test_every_cell_runs_once_the_untuned_model_first_and_iterative_ones_last(monkeypatch, arena):
    scene = Scene(monkeypatch, arena())
    cells = scene.runner.run()
    # The untuned model once; random twice over, kmq, kcenter and two iterative ones with each seed.
    assert len(cells) == len(set(scene.ran)) == 1 + 3 * 6
    assert scene.ran[0][0] == "base"
    kinds = [name.startswith("iterative") for name, _ in scene.ran]
    assert kinds == sorted(kinds)
    assert [seed for (name, seed) in scene.ran if name == "iterative-learned"] == [0, 1, 2]


def test_random_trained_longer_has_its_passes(monkeypatch, arena):
    scene = Scene(monkeypatch, arena())
    scene.runner.run()
    epochs = {name: job.config.refine.train.epochs for name, job in scene.jobs}
    assert (epochs["random-long"], epochs["random"], epochs["iterative-learned"]) == (3, 1, 1)


def test_cells_of_one_draw_run_side_by_side_but_never_two_of_the_same_draw(monkeypatch, arena):
    scene = Scene(monkeypatch, arena("parallel=3"))
    scene.runner.run()
    assert scene.most == 3
    for seed in (0, 1, 2):
        both = [at for at, (name, of) in enumerate(scene.ran) if of == seed and name in ("random", "random-long")]
        assert [scene.ran[at][0] for at in both] == ["random", "random-long"]


@pytest.mark.parametrize(("temperature", "fleets"), [(0, 1), (0.5, 3)])
def test_actors_serve_every_seed_only_where_completions_are_greedy(monkeypatch, arena, temperature, fleets):
    scene = Scene(monkeypatch, arena(f"job.refine.generate.temperature={temperature}"))
    scene.runner.run()
    used = {id(job.actors): job.actors for name, job in scene.jobs if name.startswith("iterative")}
    assert len(used) == fleets
    assert all(job.ended for job in used.values())


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_cell_that_fails_ends_the_arena_and_its_actors(monkeypatch, arena, parallel):
    scene = Scene(monkeypatch, arena(f"parallel={parallel}"), fails="kmq")
    with pytest.raises(JobError, match="no room"):
        scene.runner.run()
    assert not any(name.startswith("iterative") for name, _ in scene.ran)
    assert all(job.ended for name, job in scene.jobs if name == "kmq")
    assert scene.killed == (parallel > 1)


def test_each_cell_is_told_with_what_is_left(monkeypatch, arena):
    scene = Scene(monkeypatch, arena())
    cells = scene.runner.run()
    assert len(scene.notes.lines) == len(cells)
    assert scene.notes.lines[0].startswith(f"1 of {len(cells)} cells: untuned model: loss 1.0000; about ")
    assert scene.notes.lines[-1].startswith(f"{len(cells)} of {len(cells)} cells: iterative kmq, shuffled feedback")
    assert "left" not in scene.notes.lines[-1]
