"""Who competes, by what settings, and what is refused before anything starts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from divsel_ray.arena.cells import check_budget
from divsel_ray.arena.contenders import config_of, contenders_of, long_epochs
from divsel_ray.arena.ground import Grounds
from divsel_ray.arena.worker import check_places
from divsel_ray.config import RefineConfig
from divsel_ray.config.arena import load_arena
from divsel_ray.errors import InputError, JobError
from divsel_ray.resources import Cluster

JOB = {
    "budget": 12,
    "pool": {"data": "rows.jsonl"},
    "reward": {"model": "some/reward"},
    "quality": {"source": "reward"},
    "refine": {"rounds": 3, "held_out": 4, "train": {"model": "some/model", "epochs": 1}},
}
ARENA = {"samplers": ["kmq", "random", "kcenter"], "iterative": ["learned"], "seeds": [0, 1, 2], "job": JOB}


def write(folder, **changes):
    (folder / "arena.yaml").write_text(yaml.safe_dump({**ARENA, **changes}))
    return folder / "arena.yaml"


def job(**changes):
    return {"job": {**JOB, **changes}}


def test_the_untuned_model_random_and_both_controls_always_take_part(tmp_path):
    names = [one.name for one in contenders_of(load_arena(write(tmp_path, samplers=[])))]
    assert names == ["base", "random", "random-long", "iterative-learned", "iterative-shuffled"]


def test_without_iterative_contenders_there_is_nothing_to_control(tmp_path):
    names = [one.name for one in contenders_of(load_arena(write(tmp_path, iterative=[])))]
    assert names == ["base", "random", "kmq", "kcenter"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1]}, r"seeds \[0, 1\]: expected 3 or more different seeds"),
        ({"seeds": [0, 1, 1]}, r"expected 3 or more different seeds"),
        ({"seeds": [0, 1, 2, 2]}, r"seeds \[0, 1, 2, 2\]: contains a duplicate; remove it"),
        ({"sampler": ["kmq"]}, r"sampler: unknown key; expected one of samplers, iterative, seeds"),
        ({"evaluation": {"row": 1}}, r"evaluation\.row: unknown key; expected one of rows, share"),
        ({"spoil": {"shares": 1}}, r"spoil\.shares: unknown key; expected one of share, kinds"),
        ({"spoil": {"kinds": ["typos"]}}, r"spoil\.kinds\.0: "),
        ({"job": None}, r"job: expected a job's configuration, or the path of a file that contains it"),
        ({"job": {**JOB, "bugdet": 3}}, r"job: bugdet: unknown key"),
        ({"job": {key: JOB[key] for key in ("budget", "pool")}}, r"job\.refine: missing; its `train` section is the"),
        (job(select={"quotas": {"a": 1}}, refine=JOB["refine"]), r"quotas"),
        (job(embed={"given": "vectors.npy"}), r"embed\.given: an arena holds rows out of the pool"),
        (job(quality={"source": "given:scores.npy"}), r"quality\.source given: an arena holds rows out of the pool"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        load_arena(write(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_an_unknown_sampler_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"select\.sampler 'best': expected one of kmq"):
        contenders_of(load_arena(write(tmp_path, samplers=["best"])))


def test_a_sampler_that_has_no_clusters_to_weigh_cannot_be_iterative(tmp_path):
    with pytest.raises(InputError, match="refinement moves the weights of clusters"):
        contenders_of(load_arena(write(tmp_path, **job(select={"sampler": "kcenter"}))))


def test_settings_of_the_job_are_overridden_below_job(tmp_path):
    arena = load_arena(write(tmp_path), ["job.budget=7", "job.refine.train.epochs=2", "bootstrap=300"])
    assert (arena.job.budget, arena.refine.train.epochs, arena.settings.bootstrap) == (7, 2, 300)


def test_the_job_may_be_a_file_beside_the_arenas(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    assert load_arena(write(tmp_path, job="job.yaml"), ["job.budget=9"]).job.budget == 9


def test_the_job_may_be_a_file_of_the_current_folder_and_named_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.yaml").write_text(yaml.safe_dump(JOB))
    monkeypatch.chdir(tmp_path / "here")
    assert load_arena(write(tmp_path), ["job.budget=9", "job=mine.yaml"]).job.budget == 9


def test_a_budget_of_tokens_is_for_static_contenders(tmp_path):
    tokens = job(budget_unit="tokens")
    arena = load_arena(write(tmp_path, iterative=[], **tokens))
    assert (arena.job.budget_unit, arena.refine.train.model) == ("tokens", "some/model")
    with pytest.raises(InputError, match="budget_unit tokens are for static selections"):
        load_arena(write(tmp_path, **tokens))


def test_without_iterative_contenders_no_reward_is_needed(tmp_path):
    plain = {key: JOB[key] for key in ("budget", "pool", "refine")}
    assert load_arena(write(tmp_path, iterative=[], samplers=["kmrandom"], job=plain)).job.reward is None


def test_a_cells_job_differs_in_what_its_contender_is(tmp_path):
    arena = load_arena(write(tmp_path))
    made = {one.name: config_of(one, arena, arena.job, seed=5, epochs=1) for one in contenders_of(arena)}
    assert {config.seed for config in made.values()} == {5}
    assert {config.refine.held_out for config in made.values()} == {0}
    assert made["kcenter"].select.sampler == "kcenter"
    assert made["iterative-learned"].refine.weights.direction == "learned"
    assert not made["iterative-learned"].refine.weights.shuffled
    assert made["iterative-shuffled"].refine.weights.shuffled


def test_only_iterative_contenders_keep_a_probe_apart(tmp_path):
    refine = {**JOB["refine"], "scored": "probe", "probe": 1}
    arena = load_arena(write(tmp_path, **job(refine=refine)))
    scored = {one.name: config_of(one, arena, arena.job, seed=5, epochs=1).refine.scored for one in contenders_of(arena)}
    assert {name for name, rows in scored.items() if rows == "probe"} == {"iterative-learned", "iterative-shuffled"}
    assert set(scored.values()) == {"probe", "selected"}


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        # Rounds of 4, 8 and 12 rows: 24 x 3 passes to train, 24 to generate, over 12 x 3.
        ({}, 3),
        ({"train": {"model": "m", "epochs": 3}}, 7),
        ({"train": {"model": "m", "mode": "continue"}}, 2),
        ({"rounds": 1}, 2),
        # A probe of 5 rows in each of 2 clusters, 3 rounds of it: 24 x 3 + 30.
        ({"scored": "probe", "probe": 5}, 3),
        # 24 x 3 + 90, over 12 x 3.
        ({"scored": "probe", "probe": 15}, 5),
        ({"generate": {"samples": 8, "temperature": 1.0}}, 8),
    ],
)
def test_random_trains_no_shorter_than_all_rounds_of_an_iterative_contender(changes, epochs):
    assert long_epochs(RefineConfig(**{"rounds": 3, "train": {"model": "m"}, **changes}), budget=12, k=2) == epochs


def test_the_arenas_own_pool_is_read_and_counted_as_the_jobs(tmp_path):
    pool = {"data": "rows.jsonl", "tokenizer": "some/tokenizer", "score_column": "stars", "max_chars": 9, "partition_bytes": 2048}
    arena = load_arena(write(tmp_path, **job(pool=pool, quality={"source": "column:stars"})))
    own = Grounds(arena, store=None, cluster=None, progress=None).job_of_pool(SimpleNamespace(folder=tmp_path))
    assert own.pool.model_dump(exclude_unset=True) == {
        **pool,
        "data": [str(tmp_path / "rows")],
        "format": "messages",
        "score_column": "score",
    }
    assert own.quality.source == "column:score"


def test_unequal_budgets_are_no_comparison(tmp_path):
    config = load_arena(write(tmp_path)).job
    check_budget("kmq", {"rows": 12, "tokens": None}, 12, config)
    for rows in (11, 13):
        with pytest.raises(
            JobError, match=rf"^kmq: selected {rows} rows of a budget of 12; an arena compares equal budgets only$"
        ):
            check_budget("kmq", {"rows": rows, "tokens": None}, 12, config)


def test_a_budget_of_tokens_may_not_be_passed(tmp_path):
    config = load_arena(write(tmp_path, iterative=[], **job(budget_unit="tokens"))).job
    check_budget("kmq", {"rows": 2, "tokens": 11}, 12, config)
    with pytest.raises(JobError, match=r"selected 13 tokens of a budget of 12"):
        check_budget("kmq", {"rows": 2, "tokens": 13}, 12, config)


def test_more_cells_at_a_time_than_there_are_places_are_refused_with_the_numbers(tmp_path):
    cluster = Cluster(cpus=4, gpus=0, node_cpus=4, node_gpus=0, memory_gib=8, nodes=1, local=True)
    two = {"model": "some/model", "workers": {"count": 1, "cpus": 2}}
    settings = write(tmp_path, **job(refine={"train": two}))
    check_places(load_arena(settings, ["parallel=2"]), cluster)
    with pytest.raises(InputError, match=r"parallel 3: .* needs 2 CPUs and 0 GPUs.*4 CPUs.*at most 2 at a time"):
        check_places(load_arena(settings, ["parallel=3"]), cluster)


def test_the_shipped_arena_is_in_order():
    arena = load_arena(Path(__file__).parents[2] / "jobs" / "configs" / "arena.yaml")
    cells = sum(1 if one.kind == "base" else len(arena.settings.seeds) for one in contenders_of(arena))
    assert (arena.job.budget, cells) == (96, 1 + 5 * 10)
