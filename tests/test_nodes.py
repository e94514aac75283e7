"""Waiting for nodes before a job begins; `tests/e2e` has a cluster that scales."""

import time

import pytest
import ray

from divsel_ray.errors import InputError, JobError
from divsel_ray.nodes import await_nodes, bundles_of


def free_cpus():
    return ray.available_resources().get("CPU", 0)


def test_what_is_free_is_given_back_at_once(cluster):
    settled = time.monotonic() + 60
    while free_cpus() != ray.cluster_resources()["CPU"] and time.monotonic() < settled:
        time.sleep(0.05)
    before = free_cpus()
    await_nodes("CPU=2", 30)
    assert free_cpus() == before


def test_what_is_not_free_in_time_is_told_with_what_is(cluster):
    with pytest.raises(
        JobError, match=r"--wait-for CPU=1,GPU=1: not free within 0.5 s, free: [\d.]+ CPUs, 0 GPUs; see `ray status`"
    ):
        await_nodes("CPU=1,GPU=1", 0.5)


def test_every_cpu_and_gpu_is_asked_for_by_itself():
    assert bundles_of("CPU=2, GPU=1") == [{"GPU": 1}, {"CPU": 1}, {"CPU": 1}]


@pytest.mark.parametrize("wanted", ["", "64", "CPU", "CPU=", "CPU=-1", "CPU=1.5", "cpu=2", "TPU=2", "CPU=1,CPU=2", "CPU=1;GPU=1"])
def test_another_form_is_refused(wanted):
    with pytest.raises(InputError, match=r"expected numbers of CPUs and GPUs, e\.g\. CPU=64,GPU=2"):
        bundles_of(wanted)


def test_nothing_is_not_waited_for():
    with pytest.raises(InputError, match="requests nothing"):
        bundles_of("CPU=0")
