"""The cluster: nothing waits for ever for a place, and a stage that is over holds none."""

import time

import pytest
import ray

from divsel_ray.config import Workers
from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError, JobError
from divsel_ray.pipeline import run_job
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster, await_ready
from tests.e2e.jobs import write_rows
from tests.models.tiny import save_encoder, save_reward_model


class Actor:
    def __init__(self, broken=False):
        if broken:
            raise ValueError("no such model")

    def ready(self):
        return True


@pytest.fixture
def start(cluster):
    """Starts actors that are gone after the test."""
    actors = []

    def begin(count, cpus, **arguments):
        actors.extend(ray.remote(Actor).options(num_cpus=cpus).remote(**arguments) for _ in range(count))
        return [actor.ready.remote() for actor in actors]

    yield begin
    for actor in actors:
        ray.kill(actor)


def test_actors_that_have_a_place_are_waited_for(start):
    await_ready(start(2, 1), "embed", Workers(), 60)


def test_what_is_asked_for_what_is_free_and_what_is_missing_is_said_within_the_limit(start):
    declared = int(ray.cluster_resources()["CPU"])
    ray.get(start(1, declared))
    asked, began = start(1, declared), time.monotonic()
    with pytest.raises(JobError) as raised:
        await_ready(asked, "cluster", Workers(cpus=declared), 1)
    assert time.monotonic() - began < 10
    said = f"cluster: 1 of 2 workers ({declared} CPUs and 0 GPUs each) were not ready in 1 s; free are 0 CPUs and 0 GPUs, "
    assert str(raised.value).startswith(f"{said}missing up to {declared} CPUs; ")


def test_an_actor_that_fails_while_it_starts_is_told_of_at_once(start):
    began = time.monotonic()
    with pytest.raises(ray.exceptions.RayError, match="no such model"):
        await_ready(start(1, 1, broken=True), "embed", Workers(), 300)
    assert time.monotonic() - began < 120


def test_a_worker_that_needs_more_memory_than_a_node_has_is_refused():
    cluster = Cluster(cpus=4, gpus=0, node_cpus=2, node_gpus=0, memory_gib=16, nodes=2, local=False)
    cluster.check("refine.generate", Workers(), gib=8)
    with pytest.raises(InputError, match=r"refine.generate: one worker needs at least 8.5 GiB of memory, a node has 8.0"):
        cluster.check("refine.generate", Workers(), gib=8.5)


class Looking(Silent):
    """Looks, after each stage, whether what it held is free again."""

    def __init__(self):
        self.held = {}

    def finish(self, stage, text, *, cached):
        end = time.monotonic() + 20
        while (left := held()) and time.monotonic() < end:
            time.sleep(0.1)
        self.held[stage] = left


def held():
    total, free = ray.cluster_resources(), ray.available_resources()
    return {unit: total[unit] - free.get(unit, 0) for unit in ("CPU", "GPU") if total.get(unit, 0) != free.get(unit, 0)}


@pytest.mark.slow
def test_a_stage_that_is_over_holds_nothing(cluster, tmp_path):
    values = {
        "budget": 5,
        "pool": {"data": str(write_rows(tmp_path / "rows.jsonl", 60)), "partition_bytes": 2048},
        "clean": {"min_tokens": 1},
        "embed": {"model": str(save_encoder(tmp_path / "encoder"))},
        "cluster": {"k": 3},
        "quality": {"source": f"reward:{save_reward_model(tmp_path / 'reward')}"},
    }
    looking = Looking()
    run_job(build_config(values, "test"), tmp_path / "run", looking)
    stages = ["pool", "clean", "embed", "cluster", "quality", "round-1/draw", "diversity"]
    assert looking.held == {stage: {} for stage in stages}
