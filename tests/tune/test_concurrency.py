"""How many trials fit at once, on clusters written by hand."""

from __future__ import annotations

import pytest

from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from divsel_ray.needs import Known, needs_of
from divsel_ray.resources import Cluster
from divsel_ray.tune.concurrency import choose_concurrency, share_of


def cluster(*nodes: tuple[float, float], local: bool = False) -> Cluster:
    """Nodes of so many CPUs and GPUs."""
    cpus, gpus = (sum(node[at] for node in nodes) for at in (0, 1))
    most = [max(node[at] for node in nodes) for at in (0, 1)]
    each = () if local else nodes
    return Cluster(cpus, gpus, most[0] + 6 * local, most[1], 16.0 * len(nodes), len(nodes), local, each)


def static(**values: object):
    return build_config({"budget": 12, "pool": {"data": "rows.jsonl"}, **values}, "test")


def refined(train: dict[str, float], **values: object):
    refine = {"train": {"model": "lm", "workers": train}, "generate": {"engine": "transformers"}}
    return static(reward={"model": "reward"}, refine=refine, **values)


def fitting(config, machines: Cluster, most: int = 100) -> int:
    return choose_concurrency(None, [config], machines, most, Known())


def test_two_cpus_hold_one_trial():
    assert fitting(static(), cluster((2, 0), local=True)) == 1


def test_a_trial_takes_a_cpu_for_itself_beside_its_workers():
    assert fitting(static(), cluster((8, 0), local=True)) == 4
    assert fitting(refined({"count": 1, "cpus": 3}), cluster((8, 0), local=True)) == 2
    assert fitting(refined({"count": 3, "cpus": 1}), cluster((8, 0), local=True)) == 2


def test_no_more_trials_at_once_than_there_are():
    assert fitting(static(), cluster((64, 0), local=True), most=5) == 5


def test_gpus_bound_the_number_where_a_trial_trains_on_one():
    config = refined({"count": 1, "cpus": 1, "gpus": 1})
    assert fitting(config, cluster((32, 4))) == 4
    assert fitting(config, cluster((16, 1), (16, 1), (16, 1))) == 3
    assert fitting(refined({"count": 2, "cpus": 1, "gpus": 1}), cluster((32, 4))) == 2


def test_trials_never_share_a_gpu_silently_by_using_none():
    assert fitting(static(), cluster((32, 1))) == 1


def test_the_largest_of_several_configurations_counts():
    small, large = refined({"count": 1, "cpus": 1}), refined({"count": 1, "cpus": 6})
    assert choose_concurrency(None, [small, large], cluster((16, 0), local=True), 100, Known()) == 2


def test_what_does_not_fit_is_refused_with_the_numbers():
    config, machine = refined({"count": 1, "cpus": 2}), cluster((4, 0), local=True)
    expected = (
        "concurrency 2: of 4 CPUs and 0 GPUs each trial would get 1 and 0 besides the CPU of its own process, but refine.train "
        "asks for 1 x 2 CPUs and 1 x 0 GPUs; set concurrency to 1, or remove it"
    )
    with pytest.raises(InputError) as refused:
        choose_concurrency(2, [config], machine, 10, Known())
    assert str(refused.value) == expected
    assert choose_concurrency(1, [config], machine, 10, Known()) == 1


def test_a_share_without_a_cpu_for_the_stages_is_refused():
    with pytest.raises(InputError, match=r"each trial would get 0 and 0 .* its stages ask for at least 1; set concurrency to 1"):
        choose_concurrency(2, [static()], cluster((2, 0), local=True), 10, Known())


def test_memory_is_divided_too():
    config, machine = static(select={"sampler": "kcenter"}), cluster((64, 0), local=True)
    rows_per_gib = 1_000_000 / needs_of(config, machine, Known(1_000_000, 384))["draw"].gib

    def fitting_beside(gib: float) -> int:
        return choose_concurrency(None, [config], machine, 8, Known(int(gib * rows_per_gib), 384))

    # A draw may have half of its trial's share of the 16 GiB: 8 alone, 4 of two trials, 2.67 of three, 1 of eight.
    assert [fitting_beside(gib) for gib in (0.9, 2.5, 3.5, 7.5)] == [8, 3, 2, 1]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_shares_together_are_no_more_than_there_is(count):
    machines = cluster((16, 2), (16, 2), (8, 0), (4, 0), (4, 0), (4, 0))
    share = share_of(machines, count)
    assert count * (share.cpus + 1) <= machines.cpus
    assert count * share.gpus <= machines.gpus
    assert share_of(machines, 1) == machines
