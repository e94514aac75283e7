"""The cluster: nothing waits for ever for a place, and a stage that is over holds none."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import ray

from divsel_ray.config import Workers
from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError, JobError
from divsel_ray.pipeline import run_job
from divsel_ray.progress import Silent
from divsel_ray.resources import HIDE_GPUS, Cluster, await_ready, describe, placement_timeout_s, without_spare
from divsel_ray.select.allocation import round_sizes
from divsel_ray.tasks import run_task
from tests.e2e.jobs import environment, write_rows
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
    asked = start(2, 1)
    await_ready(asked, "embed", Workers(), 60)
    answered, _ = ray.wait(asked, num_returns=2, timeout=0)
    assert len(answered) == 2


def test_what_is_asked_for_what_is_free_and_what_is_missing_is_said_within_the_limit(start):
    declared = int(ray.cluster_resources()["CPU"])
    ray.get(start(1, declared))
    asked, began = start(1, declared), time.monotonic()
    with pytest.raises(JobError) as raised:
        await_ready(asked, "cluster", Workers(cpus=declared), 10)
    assert time.monotonic() - began < 60
    said = f"cluster: 1 of 2 workers ({declared} CPUs and 0 GPUs each) were not ready within 10 s; free: 0 CPUs and 0 GPUs, "
    assert str(raised.value).startswith(f"{said}missing: up to {declared} CPUs; ")


def test_an_actor_that_fails_while_it_starts_is_told_of_at_once(start):
    began = time.monotonic()
    with pytest.raises(ray.exceptions.RayError, match="no such model"):
        await_ready(start(1, 1, broken=True), "embed", Workers(), 300)
    assert time.monotonic() - began < 120


def test_a_worker_that_needs_more_memory_than_a_node_has_is_refused():
    cluster = Cluster(cpus=4, gpus=0, node_cpus=2, node_gpus=0, memory_gib=16, nodes=2, local=False)
    cluster.check("refine.generate", Workers(), gib=8)
    with pytest.raises(InputError, match=r"refine.generate: one worker needs at least 8.5 GiB of memory, but nodes have 8.0"):
        cluster.check("refine.generate", Workers(), gib=8.5)


def nodes(*each, local=False):
    cpus, gpus = (sum(column) for column in zip(*each, strict=True))
    most = [max(column) for column in zip(*each, strict=True)]
    return Cluster(cpus, gpus, *most, memory_gib=8, nodes=len(each), local=local, each=each)


@pytest.mark.parametrize(
    ("each", "workers", "said"),
    [
        (((32, 0), (8, 1)), {"cpus": 16, "gpus": 1}, "one worker requests 16 CPUs and 1 GPUs, but no node has both"),
        (((0, 0),), {}, "no node with a CPU is up; if the cluster starts nodes on demand, request some: --wait-for CPU=16"),
        (((4, 0),), {"cpus": 8}, "the largest node has 4 CPUs and no node has more than 0 GPUs; lower embed.workers.cpus"),
    ],
)
def test_a_worker_that_no_node_can_hold_is_refused(each, workers, said):
    with pytest.raises(InputError, match=said):
        nodes(*each).check("embed", Workers(**workers))
    # The spare CPU is taken off a node, but a worker may have it.
    nodes((15, 0)).check("embed", Workers(cpus=15))


THREE = ((5, 0), (6, 0), (6, 0))


@pytest.mark.parametrize(
    ("each", "workers", "places"),
    [
        # The 17 CPUs would make four of these.
        (THREE, {"cpus": 4}, 3),
        (THREE, {"cpus": 6}, 2),
        (THREE, {"cpus": 2.5}, 6),
        # Four GPUs each, and CPUs for two beside them.
        (((9, 4), (9, 4)), {"cpus": 4, "gpus": 1}, 4),
        (((9, 4), (9, 4)), {"cpus": 1, "gpus": 3}, 2),
        (((9, 4), (9, 0)), {"cpus": 3, "gpus": 0.5}, 3),
        (((9, 1), (9, 0)), {"cpus": 1}, 1),
        (((9, 1), (9, 0)), {"cpus": 1, "gpus": 0}, 18),
        (((0.6, 0),), {"cpus": 0.2}, 3),
        # A part of a GPU is of one GPU.
        (((9, 2),), {"cpus": 1, "gpus": 0.4}, 4),
        (((9, 2),), {"cpus": 1, "gpus": 0.6}, 2),
    ],
)
def test_actors_are_counted_by_the_places_on_each_node(each, workers, places):
    assert nodes(*each).count(Workers(**workers), 1000) == places


def test_there_is_an_actor_at_least_and_none_without_a_task():
    assert nodes(*THREE).count(Workers(cpus=4), 2) == 2
    assert nodes(*THREE).count(Workers(cpus=100), 5) == 1
    assert nodes(*THREE).count(Workers(count=9, cpus=4), 20) == 9


def test_on_a_local_machine_cpus_are_no_limit_beside_gpus():
    assert nodes((4, 2), local=True).count(Workers(cpus=4), 9) == 2
    assert nodes((4, 2), local=True).count(Workers(cpus=2, gpus=0), 9) == 2


def local(cores, gpus=0):
    """A Ray that `connect` has started on a machine."""
    declared = 2 * cores + 4
    return Cluster(cores, gpus, declared, gpus, memory_gib=8, nodes=1, local=True)


@pytest.mark.parametrize(
    ("machine", "groups", "fit"),
    [
        # 64 CPUs are asked for, 36 are declared.
        (local(16), [({}, 16), ({}, 16), ({}, 16), ({"cpus": 16}, 1)], False),
        (local(16), [({}, 16), ({"cpus": 16}, 1)], True),
        # All 12 would be held, and none left for what reads.
        (local(4), [({}, 4), ({}, 4), ({}, 4)], False),
        (local(4), [({}, 4), ({}, 4), ({}, 3)], True),
        (local(1), [({}, 1), ({}, 1), ({}, 1), ({}, 1)], True),
        (local(4, gpus=2), [({"cpus": 4}, 2), ({"cpus": 3, "gpus": 0}, 1)], True),
        (local(4, gpus=2), [({"cpus": 4}, 2), ({"cpus": 4, "gpus": 0}, 1)], False),
        (local(4, gpus=2), [({}, 3)], False),
    ],
)
def test_on_a_local_machine_groups_fit_into_the_cpus_it_declares_but_one(machine, groups, fit):
    assert machine.holds_together(*((Workers(**workers), count) for workers, count in groups)) is fit


def test_a_trial_has_its_part_of_what_a_local_machine_declares():
    part = replace(local(8), cpus=3, node_cpus=3, each=((3, 0),))
    assert part.holds_together((Workers(), 3), (Workers(), 3))
    assert not part.holds_together((Workers(), 3), (Workers(), 4))


@pytest.mark.parametrize(
    ("each", "groups", "fit"),
    [
        (THREE, [({"cpus": 4}, 3)], True),
        (THREE, [({"cpus": 4}, 4)], False),
        # Beside three of four CPUs, 1, 2 and 2 are left.
        (THREE, [({"cpus": 2}, 2), ({"cpus": 4}, 3)], True),
        (THREE, [({"cpus": 2}, 3), ({"cpus": 4}, 3)], False),
        (THREE, [({"cpus": 1}, 5), ({"cpus": 4}, 3)], True),
        # The CPU work would take the GPU's node if it came first.
        (((4, 1), (4, 0)), [({"cpus": 4, "gpus": 0}, 1), ({"cpus": 1, "gpus": 1}, 1)], True),
        (((4, 1), (4, 0)), [({"cpus": 4, "gpus": 0}, 2), ({"cpus": 1, "gpus": 1}, 1)], False),
        (((4, 1), (4, 1)), [({"gpus": 2}, 1)], False),
        (((4, 1),), [({"cpus": 0.4, "gpus": 0.2}, 5), ({"cpus": 0.2, "gpus": 0}, 10)], True),
    ],
)
def test_groups_fit_together_where_every_actor_finds_a_node(each, groups, fit):
    assert nodes(*each).holds_together(*((Workers(**workers), count) for workers, count in groups)) is fit


def test_the_spare_cpu_is_of_the_largest_node_without_gpus():
    assert without_spare([(8, 2), (4, 0), (6, 0)]) == [(8, 2), (4, 0), (5, 0)]
    assert without_spare([(0, 0), (8, 2)]) == [(0, 0), (7, 2)]
    assert without_spare([(1, 0)]) == [(1, 0)]


def test_of_a_ray_that_was_started_here_the_cores_count(cluster):
    assert describe().local
    assert describe().count(Workers(), 1000) == os.cpu_count()


def test_every_node_of_a_cluster_that_others_have_started_is_described(monkeypatch):
    each = [{"CPU": 8.0, "GPU": 2.0, "memory": 2.0**33}, {"CPU": 4.0, "memory": 2.0**32}]
    alive = [{"Alive": True, "Resources": one} for one in each]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 99.0}}])
    there = describe()
    assert (there.local, there.cpus, there.gpus, there.memory_gib) == (False, 11, 2, 12)
    assert there.each == ((8, 2), (3, 0))


def test_a_task_that_finds_no_cpu_in_time_is_told_of(cluster, monkeypatch):
    free = int(ray.cluster_resources()["CPU"])
    holder = ray.remote(num_cpus=free)(Actor).remote()
    ray.get(holder.ready.remote(), timeout=120)
    token = placement_timeout_s.set(0.5)
    try:
        with pytest.raises(JobError, match=rf"no task got a CPU within 0\.5 s: 0 of the cluster's {free} are free"):
            run_task(round_sizes, 10, 3)
    finally:
        placement_timeout_s.reset(token)
        ray.kill(holder)
    assert run_task(round_sizes, 10, 3) == [3, 4, 3]


def visible_gpus(workers_gpus):
    """What tasks that are given so many GPUs find in their environment."""
    return ray.get([ray.remote(num_gpus=gpus)(os.getenv).remote("CUDA_VISIBLE_DEVICES") for gpus in workers_gpus])


def test_a_worker_that_is_given_no_gpu_sees_none(cluster):
    assert visible_gpus([0]) == [""]


JOINING = """
import os
from ray.cluster_utils import Cluster
from divsel_ray.resources import connect
from tests.test_resources import visible_gpus
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100 << 20})
os.environ["RAY_ADDRESS"] = nodes.address
connect()
print(visible_gpus([0, 1]))
"""


@pytest.mark.slow
def test_on_a_cluster_that_others_have_started_a_worker_sees_the_gpus_it_is_given():
    """Those of this cluster are only declared."""
    given = environment()
    given.pop(HIDE_GPUS, None)
    done = subprocess.run([sys.executable, "-c", JOINING], capture_output=True, text=True, env=given, timeout=300, check=False)
    assert done.stdout.splitlines()[-1:] == ["['', '0']"], done.stderr


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
