"""Who stays loaded: fleet and crews together where the cluster holds them, each in turn where it does not."""

from pathlib import Path

import pytest

from divsel_ray.config import Workers
from divsel_ray.resources import Cluster
from divsel_ray.streaming import Stream


def cluster_of(cpus):
    return Cluster(cpus=cpus, gpus=0, node_cpus=cpus, node_gpus=0, memory_gib=8, nodes=1, local=False)


class Log(list):
    """What happened, in order."""


class FakeFleet:
    def __init__(self, log):
        self.log, self.size, self.workers = log, 0, Workers(count=2)

    def planned(self, prompts):
        return 2

    def generate(self, prompts, trained, folder, progress, finished):
        if not self.size:
            self.log.append("fleet starts")
        self.size = 2
        for number in range(2):
            self.log.append(f"generate {number}")
            finished(Path(f"shard-{number}"))
        return {"rows": 2}

    def close(self):
        if self.size:
            self.log.append("fleet ends")
        self.size = 0


class FakeCrew:
    resident = True

    def __init__(self, log, name="rewards", count=None):
        self.log, self.name, self.size, self.workers = log, name, 0, Workers(count=count)

    def submit(self, shard, folder, limit):
        self.size = limit
        self.log.append(f"score {shard.name} with {limit}")

    def score(self, shards, folder, limit, progress):
        self.size = max(self.size, limit)
        self.log.append(f"wait with {limit}")
        return [], {}

    def close(self):
        if self.size:
            self.log.append(f"{self.name} ends")
        self.size = 0


def two_rounds(cpus, count=None):
    log = Log()
    stream = Stream(FakeFleet(log), [FakeCrew(log, count=count)], Workers(count=1, cpus=2), cluster_of(cpus))
    for _ in range(2):
        stream.generate(Path("prompts"), None, Path("generate"), Path("score"), None)
        stream.score([], Path("score"), None)
        log.append("train")
    return log


@pytest.mark.parametrize(("cpus", "limit"), [(5, 1), (8, 4)])
def test_where_all_fit_shards_are_scored_between_and_nothing_is_started_twice(cpus, limit):
    one = [
        "generate 0",
        f"score shard-0 with {limit}",
        "generate 1",
        f"score shard-1 with {limit}",
        f"wait with {limit}",
        "train",
    ]
    assert two_rounds(cpus) == ["fleet starts", *one, *one]


def test_a_crew_that_training_has_no_room_for_ends_before_it():
    one = ["generate 0", "score shard-0 with 2", "generate 1", "score shard-1 with 2", "wait with 2", "rewards ends", "train"]
    assert two_rounds(4, count=2) == ["fleet starts", *one, *one]


def test_where_fleet_and_crew_do_not_fit_together_one_follows_the_other():
    one = ["fleet starts", "generate 0", "generate 1", "fleet ends", "wait with 2", "rewards ends", "train"]
    assert two_rounds(2) == [*one, *one]
