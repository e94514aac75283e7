"""The plan: rows, memory, hours and money where they are known, and what does not fit."""

import os
from dataclasses import replace

import pytest

from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from divsel_ray.needs import Known, check_cluster, needs_of
from divsel_ray.pipeline import plan_job, require_models
from divsel_ray.plan import due_totals, plan_lines
from divsel_ray.resources import Cluster
from divsel_ray.store import Store, read_json
from tests.e2e.jobs import write_rows
from tests.models.tiny import save_encoder

HERE = Cluster(cpus=4, gpus=0, node_cpus=4, node_gpus=0, memory_gib=8, nodes=1, local=False)
GIB = 2**30


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder")))


def job(folder, encoder, **more):
    data = str(write_rows(folder / "rows.jsonl", 20))
    return build_config({"budget": 5, "pool": {"data": data}, "embed": {"model": encoder}, "cluster": {"k": 2}, **more}, "test")


def commit(config, out, **facts):
    """Commit stages of a job with these facts, without making them."""
    for stage, _ in plan_job(config, out):
        if stage.name in facts:
            stage.start()
            stage.commit(facts[stage.name])


def test_of_an_empty_folder_only_settings_are_known(tmp_path, encoder):
    lines = plan_lines(job(tmp_path, encoder), tmp_path / "run", HERE)
    assert [line.stage for line in lines] == ["pool", "embed", "cluster", "round-1/draw", "diversity"]
    assert [line.rows for line in lines] == [None, None, None, 5, None]
    assert not any(line.cached or line.hours or line.gib or line.problem for line in lines)
    assert due_totals(lines) == (0, 0, 5)
    assert not (tmp_path / "run").exists()


def test_rows_and_dimension_of_committed_stages_give_rows_and_memory_of_the_others(tmp_path, encoder):
    config = job(tmp_path, encoder)
    commit(config, tmp_path / "run", pool={"rows": 1 << 20}, embed={"rows": 1 << 20, "dimension": 96})
    lines = {line.stage: line for line in plan_lines(config, tmp_path / "run", HERE)}
    assert lines["pool"].cached
    assert lines["embed"].cached
    assert lines["cluster"].rows == 1 << 20
    # 2 bytes per number of a vector, and 64 of bookkeeping.
    assert lines["cluster"].gib == pytest.approx((1 << 20) * (2 * 96 + 64) / GIB)


def test_hours_and_money_of_a_due_stage_are_those_of_its_kind_in_the_folder(tmp_path, encoder):
    prices = {"cpu_hour": 2.0, "gpu_hour": 10.0}
    config = job(tmp_path, encoder, prices=prices)
    usage = {"wall_s": 1800.0, "cpu_s": 3600.0, "gpu_s": 720.0, "attempts": 1}
    commit(config, tmp_path / "run", pool={"rows": 20}, embed={"rows": 20, "dimension": 4}, cluster={"usage": usage})
    lines = {line.stage: line for line in plan_lines(job(tmp_path, encoder, prices=prices, seed=1), tmp_path / "run", HERE)}
    assert not lines["cluster"].cached
    assert lines["cluster"].hours == 0.5
    assert lines["cluster"].money == pytest.approx(2.0 * 1 + 10.0 * 0.2)


def test_of_several_stages_of_a_kind_the_plan_takes_the_newest(tmp_path, encoder):
    for seed, wall in enumerate((3600.0, 7200.0, 1800.0)):
        usage = {"wall_s": wall, "attempts": 1}
        facts = {"pool": {"rows": 20}, "embed": {"rows": 20, "dimension": 4}, "cluster": {"usage": usage}}
        commit(job(tmp_path, encoder, seed=seed), tmp_path / "run", **facts)
    files = (tmp_path / "run").glob("cluster/*/_manifest.json")
    manifests = {read_json(file)["facts"]["usage"]["wall_s"]: file for file in files}
    assert sorted(manifests) == [1800.0, 3600.0, 7200.0]
    for second, wall in enumerate((3600.0, 1800.0, 7200.0)):
        os.utime(manifests[wall], (2e9 + second, 2e9 + second))
    lines = {line.stage: line for line in plan_lines(job(tmp_path, encoder, seed=9), tmp_path / "run", HERE)}
    assert lines["cluster"].hours == 2.0


def test_a_round_that_is_due_takes_as_long_as_one_that_was_run_and_without_cpu_time_costs_nobody_knows_what(tmp_path, encoder):
    refine = {"rounds": 2, "train": {"model": encoder}, "generate": {"engine": "transformers"}}
    config = job(tmp_path, encoder, refine=refine, reward={"model": encoder})
    commit(config, tmp_path / "run", **{"round-1/train": {"usage": {"wall_s": 1800.0, "attempts": 1}}})
    lines = {line.stage: line for line in plan_lines(config, tmp_path / "run", HERE)}
    assert (lines["round-1/train"].cached, lines["round-2/train"].cached) == (True, False)
    assert (lines["round-2/train"].hours, lines["round-2/train"].money) == (0.5, None)
    assert lines["round-2/generate"].hours is None


def test_what_workers_hold_together_is_in_the_plan(tmp_path, encoder):
    config = job(tmp_path, encoder, cluster={"k": 2, "workers": {"count": 3, "cpus": 2, "gpus": 0.5}})
    here = Cluster(cpus=8, gpus=2, node_cpus=8, node_gpus=2, memory_gib=8, nodes=1, local=False)
    line = next(line for line in plan_lines(config, tmp_path / "run", here) if line.stage == "cluster")
    assert (line.cpus, line.gpus, line.problem) == (6, 1.5, None)


def test_a_stage_that_no_node_can_hold_is_marked_and_the_others_are_not(tmp_path, encoder):
    config = job(tmp_path, encoder, cluster={"k": 2, "workers": {"gpus": 1}})
    problems = {line.stage: line.problem for line in plan_lines(config, tmp_path / "run", HERE)}
    assert "cluster.workers: one worker requests 1 CPUs and 1 GPUs" in problems.pop("cluster")
    assert not any(problems.values())


def test_a_draw_that_needs_more_memory_than_its_share_of_a_node_is_refused_before_the_clustering(tmp_path, encoder):
    config = job(tmp_path, encoder, select={"sampler": "kcenter"})
    need = needs_of(config, HERE, Known(1_000_000, 384))["draw"]
    rows = int(1_000_000 * 5 / need.gib)
    check_cluster(config, HERE, Known(rows // 2, 384))
    with pytest.raises(InputError, match=r"select.sampler: the draw needs .* GiB, but may use only 4.0 of a node"):
        check_cluster(config, HERE, Known(rows, 384))


def test_an_engine_whose_cache_no_node_can_hold_is_refused(tmp_path, encoder):
    refine = {"train": {"model": encoder}, "generate": {"engine": "vllm", "kv_cache_gib": 9}}
    config = job(tmp_path, encoder, refine=refine, reward={"model": encoder})
    with pytest.raises(InputError, match=r"refine.generate: one worker needs at least 9.0 GiB"):
        check_cluster(config, HERE)
    check_cluster(config.model_copy(update={"refine": config.refine.model_copy(update={"generate": cached(config, 7)})}), HERE)


def cached(config, gib):
    return config.refine.generate.model_copy(update={"kv_cache_gib": gib})


def test_a_manifest_that_cannot_be_read_costs_the_plan_its_hours_only(tmp_path, encoder):
    config = job(tmp_path, encoder)
    stage = Store(tmp_path / "run").stage("pool", 1, {}, [])
    stage.start()
    (stage.folder / "_manifest.json").write_text("{")
    assert plan_lines(config, tmp_path / "run", HERE)[0].hours is None


def test_a_job_that_allows_fewer_rows_finds_its_draw_committed(tmp_path, encoder):
    out = tmp_path / "run"
    config = job(tmp_path, encoder, budget=50, allow_fewer=True)
    assert draw_size(config, out) == 50
    commit(config, out, pool={"rows": 20})
    assert draw_size(config, out) == 20
    commit(config, out, **{"round-1/draw": {"rows": 20}})
    assert {line.stage: line.cached for line in plan_lines(config, out, HERE)}["round-1/draw"]


def draw_size(config, out):
    [draw] = [stage for stage, _ in plan_job(config, out) if stage.name == "round-1/draw"]
    return draw.identity["config"]["size"]


def test_a_plan_refuses_a_budget_that_its_committed_pool_does_not_hold(tmp_path, encoder):
    config = job(tmp_path, encoder, budget=50)
    commit(config, tmp_path / "run", pool={"rows": 20})
    with pytest.raises(InputError, match="budget 50 exceeds the pool's 20 rows"):
        plan_job(config, tmp_path / "run")


JUDGE = {"model": "some-judge", "url": "http://localhost:1/v1"}
GPUS = Cluster(cpus=8, gpus=4, node_cpus=8, node_gpus=4, memory_gib=8, nodes=1, local=False)


def held(config, kind):
    """Processes of a stage, and GPUs of each."""
    need = needs_of(config, GPUS, Known())[kind]
    return need.count, GPUS.gpus_per_worker(need.workers)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"quality": {"source": "ifd:some/model"}}, (4, 1)),
        ({"quality": {"source": "reward"}, "reward": {"model": "some/model"}}, (4, 1)),
        ({"quality": {"source": "column:score"}, "pool": {"data": "rows.jsonl", "score_column": "score"}}, (8, 0)),
        ({"quality": {"source": "given:scores.npy"}}, (8, 0)),
        ({"quality": {"source": "judge", "judge": JUDGE, "workers": {"count": 3, "gpus": 1}}}, (1, 0)),
        ({"quality": {"source": "reward"}, "reward": {"judge": JUDGE}}, (1, 0)),
    ],
)
def test_what_computes_no_scores_holds_no_gpu_and_a_judge_one_process(tmp_path, encoder, more, expected):
    config = build_config({"budget": 5, "pool": {"data": "rows.jsonl"}, **more}, "test")
    assert held(config, "quality") == expected


def test_completions_that_judges_rate_hold_no_gpu(tmp_path, encoder):
    refine = {"train": {"model": encoder}, "second": {"judge": JUDGE}}
    config = job(tmp_path, encoder, refine=refine, reward={"judge": JUDGE})
    assert held(config, "score") == held(config, "second") == (1, 0)
    check_cluster(job(tmp_path, encoder, refine=refine, reward={"judge": JUDGE, "workers": {"gpus": 2}}), HERE)


def test_training_that_needs_more_cpus_at_once_than_there_are_is_refused_before_anything_starts(tmp_path, encoder):
    def training(cluster, **train):
        check_cluster(job(tmp_path, encoder, reward={"model": encoder}, refine={"train": {"model": encoder, **train}}), cluster)

    # One of the five CPUs is spared from actors, but not from training.
    five = replace(HERE, node_cpus=5)
    message = r"^refine\.train\.workers: 3 workers x 2 CPUs are needed at once, but the cluster has 5; lower count or cpus$"
    with pytest.raises(InputError, match=message):
        training(five, workers={"count": 3, "cpus": 2})
    training(five, workers={"count": 5, "cpus": 1})
    training(five, workers={"count": 3, "cpus": 2}, min_workers=2)
    training(replace(five, local=True), workers={"count": 3, "cpus": 2})
    one_gpu = replace(HERE, gpus=1, node_gpus=1)
    with pytest.raises(
        InputError, match=r"^refine\.train\.workers: 2 workers x 1 GPUs are requested, but the cluster has 1; lower"
    ):
        training(one_gpu, workers={"count": 2})
    training(one_gpu, workers={"count": 2}, min_workers=1)


def test_a_job_that_trains_where_nothing_is_installed_to_train_with_is_refused_before_it_starts(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("divsel_ray.pipeline.find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(InputError, match=r"^refine: training needs peft; run pip install 'divsel-ray\[train\]'$"):
        require_models(job(tmp_path, encoder, reward={"model": encoder}, refine={"train": {"model": encoder}}))
    require_models(job(tmp_path, encoder))


def test_a_due_quality_stage_of_some_rows_is_planned_with_those(tmp_path, encoder):
    refine = {"train": {"model": encoder}, "held_out": 7, "scored": "probe", "probe": 4}
    more = {"quality": {"source": "reward", "oversample": 2.5}, "reward": {"model": encoder}, "refine": refine}
    config = job(tmp_path, encoder, **more)
    commit(config, tmp_path / "run", pool={"rows": 1000}, embed={"rows": 1000, "dimension": 4})
    # 2.5 x 5 rounded up, 7 held out, 4 of each of 2 clusters
    assert planned(config, tmp_path / "run", "quality") == 13 + 7 + 8
    commit(config, tmp_path / "small", pool={"rows": 20}, embed={"rows": 20, "dimension": 4})
    assert planned(config, tmp_path / "small", "quality") == 20
    assert planned(config, tmp_path / "none", "quality") is None


def planned(config, out, name):
    [line] = [line for line in plan_lines(config, out, HERE) if line.stage == name]
    return line.rows
