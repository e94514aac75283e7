"""The file of a search: what it may hold, and what is refused in one line before anything starts."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from divsel_ray.cli import app
from divsel_ray.config.tuning import Dimension, flatten, load_tuning
from divsel_ray.errors import InputError
from tests.tune.searches import REFINED, search, write_search


def test_the_jobs_file_lies_beside_the_searchs_and_both_take_overrides(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"budget": 5, "pool": {"data": "a.jsonl"}}))
    file = write_search(tmp_path)
    found = load_tuning(file, ["job.pool.data=b.jsonl", "search.cluster.k={choice: [2, 3, 5]}", "objective=copies"])
    assert found.objective == "copies"
    assert found.count == 3
    config = found.config_of({"cluster.k": 5})
    assert (config.cluster.k, config.pool.data, config.budget) == (5, ["b.jsonl"], 5)


def test_another_job_can_be_named_on_the_command_line(tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"budget": 7, "pool": {"data": "a.jsonl"}}))
    found = load_tuning(write_search(tmp_path), [f"job={tmp_path / 'other.yaml'}", "job.seed=3"])
    config = found.config_of({"cluster.k": 4})
    assert (config.budget, config.seed) == (7, 3)


def test_settings_may_be_nested_or_dotted_and_null_drops_one():
    dotted = {"cluster.k": {"choice": [1]}, "budget": {"randint": [1, 2]}}
    assert flatten({"cluster": {"k": {"choice": [1]}}, "budget": {"randint": [1, 2]}}) == dotted
    assert flatten({**dotted, "budget": None}) == {"cluster.k": {"choice": [1]}}


def test_a_later_override_replaces_a_dimension(tmp_path):
    found = search(tmp_path, "search.cluster.k={choice: [6]}")
    assert found.search["cluster.k"].values == [6]


def test_a_trial_changes_nothing_of_the_search_itself(tmp_path):
    found = search(tmp_path)
    found.config_of({"cluster.k": 8})
    assert "cluster" not in found.job


def test_the_values_checked_of_a_range_are_its_ends_and_one_between():
    assert Dimension(randint=(1, 9)).values == [1, 5, 9]
    low, between, high = Dimension(loguniform=(0.01, 100.0)).values
    assert (low, high) == (0.01, 100.0)
    assert low < between < high
    assert Dimension(choice=["a", None]).values == ["a", None]


def test_the_trials_of_a_grid_are_all_combinations(tmp_path):
    found = search(tmp_path, search={"cluster.k": {"choice": [4, 8]}, "budget": {"choice": [10, 20, 30]}})
    assert found.count == 6
    assert len(list(found.corners())) == 6
    assert [point["budget"] for point in found.variations()] == [10, 10, 20]


RANDOM = {"searcher": "random", "trials": 4}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search": {"cluster.size": {"choice": [1]}}}, "cluster.size: unknown key; expected one of k, metric"),
        ({"search": {"cluster.k": {"choice": [4, 0]}}}, r"search, cluster.k=0: cluster.k: .*greater than or equal to 1"),
        ({"search": {"cluster.k": {"choice": [4, "many"]}}}, "search, cluster.k=many: cluster.k: .*integer"),
        ({"search": {"cluster.k": {"loguniform": [4, 64]}}, **RANDOM}, "cluster.k: .*integer"),
        ({"search": {"select.temperature": {"uniform": [-1, 1]}}, **RANDOM}, "select.temperature: .*greater than 0"),
        ({"search": {"select.temperature": {"loguniform": [0, 1]}}, **RANDOM}, "expected positive numbers, as the logarithm"),
        ({"search": {"select.temperature": {"uniform": [2, 1]}}, **RANDOM}, r"uniform \[2, 1\]: expected two different finite"),
        ({"search": {"budget.rows": {"choice": [1]}}}, "search budget.rows: budget is a value, not a section"),
        (
            {"search": {"cluster.k": {"choice": [4], "randint": [1, 2]}}},
            "exactly one of choice, .*; given: choice, randint",
        ),
        ({"search": {"cluster.k": {"chose": [4]}}}, "unknown key; expected one of choice, uniform"),
        ({"search": {}}, "search: .*at least 1"),
        ({"search": {"select.temperature": {"uniform": [1, 2]}}}, "search select.temperature: searcher grid needs `choice`"),
        ({"trials": 3}, "trials: a grid tries every combination"),
        ({"searcher": "random"}, "trials: required by searcher random"),
        ({"objectve": "vendi"}, "objectve: unknown key; expected one of job, search, objective"),
        ({"benchmark": {"settings": {"shots": 1}}}, "benchmark.settings.shots: unknown key; expected one of max_tokens"),
        ({"job": 3}, "job: .*dictionary"),
    ],
)
def test_a_wrong_search_is_refused_in_one_line(tmp_path, changes, said):
    with pytest.raises(InputError, match=said) as refused:
        search(tmp_path, **changes)
    assert "\n" not in str(refused.value)


def test_a_combination_that_contradicts_itself_is_refused(tmp_path):
    dimensions = {"budget": {"choice": [12, 2]}, "refine.rounds": {"choice": [2, 3]}}
    with pytest.raises(InputError, match=r"budget=2, refine.rounds=3: .*budget 2: is smaller than refine.rounds 3"):
        search(tmp_path, job=REFINED, search=dimensions)


@pytest.mark.parametrize("text", ["- a", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "search.yaml").write_text(text)
    with pytest.raises(InputError, match=r"search.yaml: (not valid YAML|expected a mapping)"):
        load_tuning(tmp_path / "search.yaml")


def test_a_missing_job_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent.yaml: no such configuration file"):
        load_tuning(write_search(tmp_path, job="absent.yaml"))


def test_the_command_ends_with_2_and_one_line(tmp_path):
    done = CliRunner().invoke(app, ["tune", str(write_search(tmp_path, job="absent.yaml"))])
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
