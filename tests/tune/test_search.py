"""Whole searches on Ray Tune: shared stages, kill and resume, trials stopped between rounds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from divsel_ray.config.tuning import load_tuning
from divsel_ray.tune.search import tune_job
from divsel_ray.tune.trial import held
from tests.e2e.jobs import divsel, environment, write_job
from tests.tune.searches import write_search, write_static

pytestmark = pytest.mark.slow

GRID = {"search": {"budget": {"choice": [12, 24]}, "cluster.k": {"choice": [4, 8]}}, "measures": ["simplified_silhouette"]}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, Path, dict[str, int]]:
    """A grid's file, the folder of a search that was killed, and when its first finished trial was written."""
    folder = tmp_path_factory.mktemp("grid")
    write_static(folder)
    file, out = write_search(folder, **GRID), folder / "out"
    command = [sys.executable, "-m", "divsel_ray.cli", "tune", str(file), "--out", str(out)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while not (done := list(out.glob("trials/*/manifest.json"))) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert done, said
    return file, out, {str(path): path.stat().st_mtime_ns for path in done}


@pytest.fixture(scope="module")
def grid(killed) -> tuple[Path, Path]:
    """The same command again, to its end."""
    file, out, _ = killed
    done = divsel("tune", file, "--out", out)
    assert done.returncode == 0, done.stderr
    return file, out


def test_a_killed_search_goes_on_to_its_end_and_keeps_what_was_finished(killed, grid):
    _, out = grid
    record = json.loads((out / "tune.json").read_text())
    assert [one["state"] for one in record["trials"]] == ["finished"] * 4
    settings = {(one["settings"]["budget"], one["settings"]["cluster.k"]) for one in record["trials"]}
    assert settings == {(12, 4), (12, 8), (24, 4), (24, 8)}
    vendi = [one["objective"] for one in record["trials"]]
    assert vendi == sorted(vendi, reverse=True)
    assert len(killed[2]) < 4


def test_what_trials_have_in_common_is_made_once(grid):
    _, out = grid
    made = [path for path in out.glob("*/*/*/*/_manifest.json") if not path.parent.is_symlink()]
    made += [path for path in out.glob("shared/*/*/_manifest.json") if not path.parent.is_symlink()]
    names = [json.loads(path.read_text())["stage"] for path in made]
    assert {name: names.count(name) for name in ("pool", "embed", "quality")} == {"pool": 1, "embed": 1, "quality": 1}
    assert names.count("cluster") == 2
    assert names.count("simplified_silhouette") == 2
    assert names.count("diversity") == 4
    for path in out.glob("trials/*/manifest.json"):
        cached = {stage["stage"]: stage["cached"] for stage in json.loads(path.read_text())["stages"]}
        assert cached["pool"]
        assert cached["embed"]


def test_each_trial_is_a_run_folder_and_the_best_one_is_run_again(grid):
    from divsel_ray.config.files import load_config
    from divsel_ray.pipeline import plan_job
    from divsel_ray.report.facts import read_run

    _, out = grid
    best = json.loads((out / "tune.json").read_text())["best"]
    assert read_run(out / "trials" / best).rows == 24
    assert all(cached for _, cached in plan_job(load_config(out / "best.yaml"), out / "trials" / best))


def test_what_is_pickled_is_for_the_owner_only(grid):
    _, out = grid
    assert oct((out / ".state").stat().st_mode & 0o777) == "0o700"
    pickles = [path for path in out.rglob("*.pkl") if ".state" not in path.parts]
    assert pickles == []


def test_optuna_draws_within_the_ranges_and_the_same_again_for_a_seed(cluster, grid):
    file, out = grid
    ranges = {"budget": {"randint": [10, 12]}, "select.temperature": {"loguniform": [0.1, 10.0]}}
    values = json.loads(file.read_text()) | {"search": ranges, "searcher": "optuna", "trials": 2, "measures": []}
    (file.parent / "optuna.yaml").write_text(json.dumps(values))
    outcome = tune_job(load_tuning(file.parent / "optuna.yaml"), out)
    points = [trial.settings for trial in outcome.finished]
    assert len(points) == 2
    assert all(point["budget"] in (10, 11, 12) and 0.1 <= point["select.temperature"] <= 10 for point in points)
    again = tune_job(load_tuning(file.parent / "optuna.yaml", ["measures=[copies]"]), out)
    assert [trial.settings for trial in again.finished] == points


def test_equal_points_are_one_finished_trial_and_another_search_leaves_its_figures(cluster, tmp_path):
    write_static(tmp_path)
    how = {"search": {"cluster.k": {"choice": [4]}}, "searcher": "random", "trials": 3}
    file = write_search(tmp_path, **how)
    first, second, again = (
        tune_job(load_tuning(file, [f"objective={name}"]), tmp_path / "out") for name in ("vendi", "copies", "vendi")
    )
    assert [one.state for one in first.trials] == ["finished"]
    assert [one.objective for one in again.trials] == [one.objective for one in first.trials]
    assert [one.key for one in second.trials] == [one.key for one in first.trials]
    assert list(second.trials[0].figures) == ["copies"]


def test_asha_stops_a_trial_after_the_round_in_which_another_was_better(cluster, tmp_path):
    job = yaml.safe_load(write_job(tmp_path).read_text())
    job["pool"]["partition_bytes"] = 1 << 20
    job["quality"] = {"source": "none"}
    rates = {"refine.train.learning_rate": {"choice": [0.05, 0.0001]}}
    # One after the other: the first to report at a round always goes on.
    how = {"scheduler": "asha", "reduction": 2, "concurrency": 1}
    file = write_search(tmp_path, job=job, search=rates, objective="held_out_loss", **how)
    outcome = tune_job(load_tuning(file), tmp_path / "out")
    assert [(one.settings["refine.train.learning_rate"], one.state, one.last_round) for one in outcome.trials] == [
        (0.05, "finished", 2),
        (0.0001, "stopped", 1),
    ]
    stopped = tmp_path / "out" / "trials" / outcome.trials[1].key
    assert (stopped / "round-1/weights").is_dir()
    assert not (stopped / "round-2").exists()
    assert not (stopped / "manifest.json").exists()
    one, other = (next((tmp_path / "out/trials" / trial.key).glob("round-1/draw/*")) for trial in outcome.trials)
    assert one.samefile(other)
    # Nothing of the stopped trial's job is left that would hold its folder.
    with held(stopped, 60):
        pass
