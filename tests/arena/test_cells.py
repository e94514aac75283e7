"""When the processes that train give way to those that generate and score."""

from pathlib import Path

import pytest

from divsel_ray.arena.cells import ArenaJob
from divsel_ray.config import Config
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster
from divsel_ray.rounds import RefiningJob
from divsel_ray.store import Store
from tests.arena.test_contenders import JOB


class Bench:
    """Stands in for the processes that train."""

    def __init__(self, size):
        self.size, self.closed = size, False

    def close(self):
        self.closed = True


def gives_way(monkeypatch, folder: Path, gpus, trainers, shard_size):
    """Whether a bench ends before a cell's prompts are completed on one node with so many GPUs, all workers taking one."""
    monkeypatch.setattr(RefiningJob, "generate", lambda *_: None)
    refine = {**JOB["refine"], "generate": {"shard_size": shard_size, "workers": {}}}
    (folder / "rows.jsonl").touch()
    config = Config.model_validate({**JOB, "pool": {"data": str(folder / "rows.jsonl")}, "refine": refine})
    node = (64.0, float(gpus))
    cluster = Cluster(*node, *node, memory_gib=64, nodes=1, local=False, each=(node,))
    bench = Bench(trainers)
    ArenaJob(config, Store(folder), Silent(), cluster, dry=True, bench=bench).generate(1, None, None, None)
    return bench.closed


@pytest.mark.parametrize(
    ("gpus", "trainers", "shard_size", "expected"),
    [
        (3, 1, 12, False),  # one trains, one generates (a single shard), one scores
        (2, 1, 12, True),
        (3, 1, 4, True),  # three shards: every GPU is to generate
        (3, 2, 12, True),  # two cells at a time
        (4, 2, 12, False),
    ],
)
def test_what_trains_gives_way_where_not_all_fit_at_once(monkeypatch, tmp_path, gpus, trainers, shard_size, expected):
    assert gives_way(monkeypatch, tmp_path, gpus, trainers, shard_size) is expected
