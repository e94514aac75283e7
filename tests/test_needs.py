"""What stages ask for on a cluster with GPUs: what their settings say, and one each where those say nothing."""

from dataclasses import replace

import pytest

from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from divsel_ray.needs import Known, check_cluster, needs_of
from divsel_ray.resources import Cluster

GPUS = Cluster(cpus=24, gpus=4, node_cpus=8, node_gpus=2, memory_gib=64, nodes=3, local=False, each=((7, 0), (8, 2), (8, 2)))
SECTIONS = {
    "embed": "embed",
    "cluster": "cluster",
    "quality": "quality",
    "score": "reward",
    "second": "refine.second",
    "train": "refine.train",
    "generate": "refine.generate",
}
"""Stages that can use GPUs, and the sections that say how many."""


def job(**workers):
    """A job that has every such stage, with these workers in the section of that stage."""
    settings = {
        "budget": 5,
        "pool": {"data": "rows.jsonl"},
        "embed": {},
        "cluster": {},
        "quality": {"source": "reward"},
        "reward": {"model": "some/reward"},
        "refine": {"second": {"model": "other/reward"}, "train": {"model": "some/model"}, "generate": {"engine": "transformers"}},
    }
    for stage, given in workers.items():
        section = settings
        for key in SECTIONS[stage].split("."):
            section = section[key]
        section["workers"] = given
    return build_config(settings, "test")


def asked(config, stage):
    need = needs_of(config, GPUS, Known())[stage]
    assert need.section == SECTIONS[stage]
    return need.count, GPUS.gpus_per_worker(need.workers)


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_stage_asks_for_one_gpu_for_each_worker_where_nothing_is_said(stage):
    # On all four GPUs, but for training and generation, which have one worker unless told otherwise.
    assert asked(job(), stage) == (1 if stage in ("train", "generate") else 4, 1)


@pytest.mark.parametrize("stage", SECTIONS)
@pytest.mark.parametrize(("given", "expected"), [({"count": 1, "gpus": 0.5}, (1, 0.5)), ({"count": 3, "gpus": 0}, (3, 0))])
def test_a_stage_asks_for_what_its_own_settings_say_and_the_others_do_not(stage, given, expected):
    config = job(**{stage: given})
    assert asked(config, stage) == expected
    assert all(asked(config, other)[1] == 1 for other in SECTIONS if other != stage)


@pytest.mark.parametrize("stage", sorted(SECTIONS.keys() - {"train"}))
def test_a_stage_that_asks_for_more_gpus_than_a_node_has_is_refused_with_its_section(stage):
    with pytest.raises(InputError, match=rf"^{SECTIONS[stage]}.workers: one worker requests 1 CPUs and 3 GPUs"):
        check_cluster(job(**{stage: {"count": 1, "gpus": 3}}), GPUS)


def test_training_on_a_gpu_is_refused_where_no_node_has_one():
    with pytest.raises(InputError, match=r"^refine\.train\.workers: one worker requests 1 CPUs and 1 GPUs"):
        check_cluster(job(train={"gpus": 1}), replace(GPUS, gpus=0, node_gpus=0, each=((8, 0),) * 3))


@pytest.mark.parametrize("stage", ["generate", "score", "second"])
def test_one_training_without_rounds_asks_for_nothing_that_only_rounds_need(stage):
    config = job(**{stage: {"count": 1, "gpus": 3}})
    check_cluster(config, GPUS, rounds=False)
    left_out = needs_of(config, GPUS, Known()).keys() - needs_of(config, GPUS, Known(), rounds=False)
    assert left_out == {"generate", "score", "second"}
    with pytest.raises(InputError, match=r"^refine\.train"):
        check_cluster(job(train={"count": 1, "cpus": 9}), GPUS, rounds=False)


def test_what_only_reads_and_draws_asks_for_no_gpu():
    needs = needs_of(job(), GPUS, Known())
    assert {kind for kind in needs if not GPUS.gpus_per_worker(needs[kind].workers)} == {
        "pool",
        "clean",
        "semantic",
        "draw",
        "diversity",
        "reward",
    }


MILLION = Known(1_000_000, 384)


def drawing(**more):
    """A draw that holds the vectors of all rows that may be drawn."""
    job = {"budget": 1000, "pool": {"data": "rows.jsonl"}, "select": {"sampler": "facility", **more.pop("select", {})}, **more}
    return build_config(job, "test")


def test_a_draw_of_all_rows_that_no_node_holds_is_refused():
    with pytest.raises(InputError, match=r"^select\.sampler: the draw needs"):
        check_cluster(drawing(), replace(GPUS, memory_gib=1), MILLION)


@pytest.mark.parametrize(
    "left_out",
    [
        {"quality": {"source": "ifd:some/model", "oversample": 2}},
        {"select": {"missing": "drop"}},
        {"select": {"exclude": "others.txt"}},
        {"clean": {"semantic_duplicates": 0.9}},
        {"select": {"quotas": {"rows.jsonl": 500}}},
        {"budget_unit": "tokens"},
    ],
)
def test_a_draw_of_rows_that_nobody_has_counted_yet_is_not_refused_for_their_memory(left_out):
    assert needs_of(drawing(), GPUS, MILLION)["draw"].gib > 1
    assert needs_of(drawing(**left_out), GPUS, MILLION)["draw"].gib is None
    check_cluster(drawing(**left_out), replace(GPUS, memory_gib=1), MILLION)
