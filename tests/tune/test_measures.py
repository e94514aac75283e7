"""Figures that a trial's stages do not hold already."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from divsel_ray.config.files import load_config
from divsel_ray.config.tuning import BenchmarkConfig
from divsel_ray.errors import InputError, JobError
from divsel_ray.pipeline import run_job
from divsel_ray.progress import Silent
from divsel_ray.report.records import StageRecord
from divsel_ray.store import Store, write_json
from divsel_ray.tune import measures
from divsel_ray.tune.measures import benchmark, measure, require_benchmarks
from tests.tune.searches import REFINED, search, write_static


def test_figures_of_a_run_are_its_own_and_the_silhouette_is_scikit_learns_definition(cluster, tmp_path):
    config = load_config(write_static(tmp_path))
    folder = run_job(config, tmp_path / "run")
    tuning = search(tmp_path, measures=["simplified_silhouette", "clusters_covered"])
    found = measure(tuning, config, Store(folder), cluster, Silent())
    vectors = read(folder / "embed", "embedding")
    labels = read(folder / "cluster", "cluster")
    [centroids] = [np.load(path) for path in folder.glob("cluster/*/centroids.npy")]
    distances = np.linalg.norm(vectors[:, None] - centroids[None], axis=2)
    own = distances[np.arange(len(labels)), labels]
    distances[np.arange(len(labels)), labels] = np.inf
    assert found["simplified_silhouette"] == pytest.approx(np.mean(1 - own / distances.min(axis=1)), abs=1e-6)
    [diversity] = folder.glob("diversity/*/diversity.json")
    assert str(found["vendi"]) in diversity.read_text()
    [kept] = (folder / "simplified_silhouette").iterdir()
    written = (kept / "_manifest.json").stat().st_mtime_ns
    assert measure(tuning, config, Store(folder), cluster, Silent()) == found
    assert (kept / "_manifest.json").stat().st_mtime_ns == written
    with pytest.raises(JobError, match="held_out_loss is not available for this run"):
        measure(search(tmp_path, objective="held_out_loss"), config, Store(folder), cluster, Silent())


def read(folder, column):
    tables = [pq.read_table(path, columns=[column]) for path in sorted(folder.glob("*/*.parquet"))]
    return np.concatenate([np.array(table[column].to_pylist()) for table in tables])


class Evaluation:
    """In place of the evaluation: keeps what was asked for, and answers."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, request, config, out):
        self.asked.append((request, config, out))
        figures = [{"metric": "arc acc", "value": 0.25}, {"metric": "arc acc_norm (none)", "value": 0.5}]
        figures.append({"metric": "arc surprise", "value": 9.0})
        write_json(self.folder / "evaluate.json", {"figures": figures, "files": {"arc": ["task-1.json"]}})
        better = {"acc": True, "acc_norm": True, "surprise": False}
        write_json(self.folder / "task-1.json", {"raw": {"higher_is_better": {"arc": better}}})
        return self.folder / "evaluate.json"


def stages_in(folder):
    return {
        f"round-{number}/{stage}": StageRecord(folder / f"{stage}-{number}", {}, 0.0, False)
        for number in (1, 2)
        for stage in ("draw", "train")
    }


def test_a_benchmark_is_asked_of_the_last_rounds_model(tmp_path, monkeypatch):
    from divsel_ray.evaluate import evaluation

    answers = Evaluation(tmp_path)
    monkeypatch.setattr(evaluation, "evaluate", answers)
    config, stages = search(tmp_path, job=REFINED).config_of({}), stages_in(tmp_path)
    asked = BenchmarkConfig(limit=8, tasks_folder="tasks")
    assert benchmark("arc", stages, config, asked, tmp_path) == 0.25
    assert benchmark("arc:acc_norm", stages, config, asked, tmp_path) == 0.5
    request, settings, out = answers.asked[0]
    assert request.models == [str(tmp_path / "train-2" / "training" / "adapter")]
    assert (request.tasks, str(request.tasks_folder), request.limit, request.human_eval) == (["arc"], "tasks", 8, False)
    assert (settings, out) == (asked.settings, tmp_path / "evaluate" / "arc")
    with pytest.raises(InputError, match="evaluate:arc:f1: expected one of the metrics arc acc, arc acc_norm"):
        benchmark("arc:f1", stages, config, asked, tmp_path)
    benchmark("humaneval", stages, config, asked, tmp_path)
    assert answers.asked[-1][0].human_eval
    assert answers.asked[-1][0].tasks == []


def test_an_objective_of_which_the_harness_says_less_is_better_needs_a_mode(tmp_path, monkeypatch):
    from divsel_ray.evaluate import evaluation

    def measured(**changes):
        tuning = search(tmp_path, job=REFINED, **changes)
        return measure(tuning, tuning.config_of({}), Store(tmp_path), None, Silent())

    monkeypatch.setattr(evaluation, "evaluate", Evaluation(tmp_path))
    monkeypatch.setattr(measures, "read_stages", lambda _: ({}, stages_in(tmp_path)))
    with pytest.raises(InputError, match=r"evaluate:arc:surprise: lower arc surprise is better; set mode: min"):
        measured(objective="evaluate:arc:surprise")
    assert measured(objective="evaluate:arc:surprise", mode="min") == {"evaluate:arc:surprise": 9.0}
    assert measured(objective="evaluate:arc", measures=["evaluate:arc:surprise"])["evaluate:arc"] == 0.25


def test_what_a_benchmark_needs_is_missed_before_anything_starts(tmp_path, monkeypatch):
    from divsel_ray.evaluate import harness

    monkeypatch.setattr(harness, "installed_version", lambda name: None)
    with pytest.raises(InputError, match="lm-evaluation-harness is not installed"):
        require_benchmarks(["evaluate:gsm8k"], BenchmarkConfig())
    require_benchmarks([], BenchmarkConfig())


def test_optuna_is_missed_before_anything_starts(tmp_path, monkeypatch):
    from divsel_ray.tune.search import tune_job

    monkeypatch.setitem(sys.modules, "optuna", None)
    tuning = search(tmp_path, searcher="optuna", trials=2)
    with pytest.raises(InputError, match="searcher optuna: the package is missing"):
        tune_job(tuning, tmp_path / "out")
    assert not (tmp_path / "out").exists()
