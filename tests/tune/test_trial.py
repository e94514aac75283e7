"""The process of trials, without Ray: it reports, waits, and always comes to an end."""

from __future__ import annotations

import dataclasses
import threading
import time
from types import SimpleNamespace

import pytest

from divsel_ray.errors import InputError, JobError
from divsel_ray.resources import Cluster
from divsel_ray.store import Store, write_json
from divsel_ray.tune import trial
from divsel_ray.tune.outcome import read_trial
from divsel_ray.tune.record import read_record, record_file
from divsel_ray.tune.search import _trials
from divsel_ray.tune.trial import Setting, TrialProcess
from tests.tune.searches import REFINED, search

RATE = "refine.train.learning_rate"


@pytest.fixture
def setting(tmp_path, monkeypatch) -> Setting:
    """A search whose trials are stopped between rounds; jobs of two rounds in which nothing is computed."""

    def run_job(config, folder, beside):
        [tracker] = beside.trackers
        for number in (1, 2):
            (folder / f"round-{number}").mkdir()
            tracker.round(number, {"held_out_loss": 3.0 - number})

    monkeypatch.setattr(trial, "run_job", run_job)
    monkeypatch.setattr(trial, "measure", lambda *_: {"held_out_loss": 1.0})
    how = {"objective": "held_out_loss", "scheduler": "asha", "search": {RATE: {"choice": [0.1, 0.2]}}}
    return Setting(search(tmp_path, job=REFINED, **how), tmp_path, Cluster(2, 0, 2, 0, 8, 1, local=True), "a")


def test_every_trial_of_a_process_waits_after_a_round_until_it_is_told_to_go_on(setting):
    process = TrialProcess(setting)
    for rate in (0.1, 0.2):
        running = threading.Thread(target=process.run, args=({RATE: rate},), daemon=True)
        running.start()
        assert process.next_report() == {"round": 1, "objective": 2.0}
        time.sleep(0.2)
        folder = setting.folder({RATE: rate})
        assert not (folder / "round-2").exists()
        process.go_on()
        assert process.next_report() == {"round": 2, "objective": 1.0}
        process.go_on()
        assert process.next_report() is None
        running.join(10)
        found = read_trial(folder, "a", {RATE: rate}, setting.tuning, None)
        assert (found.state, found.last_round, found.objective) == ("finished", 2, 1.0)


def test_a_trial_that_fails_reports_no_more_and_says_why_in_its_folder(setting, monkeypatch):
    def fail(config, folder, beside):
        raise InputError("no such file")

    monkeypatch.setattr(trial, "run_job", fail)
    process = TrialProcess(setting)
    with pytest.raises(JobError, match=r"^no such file$"):
        process.run({RATE: 0.1})
    assert process.next_report() is None
    found = read_trial(setting.folder({RATE: 0.1}), "a", {RATE: 0.1}, setting.tuning, None)
    assert (found.state, found.error) == ("failed", "no such file")


def test_a_trial_of_settings_that_are_not_allowed_ends_too(setting):
    process = TrialProcess(setting)
    with pytest.raises(InputError, match=f"search, {RATE}=-1: {RATE}: .*greater than 0"):
        process.run({RATE: -1})
    assert process._reports.get(timeout=1) is None


def run_aside(process: TrialProcess) -> threading.Thread:
    running = threading.Thread(target=process.run, args=({RATE: 0.1},), daemon=True)
    running.start()
    return running


def test_a_trial_of_equal_settings_waits_for_the_first_and_has_its_figures(setting):
    first, second = TrialProcess(setting), TrialProcess(setting)
    working = run_aside(first)
    assert first.next_report() == {"round": 1, "objective": 2.0}
    waiting = run_aside(second)
    time.sleep(0.2)
    assert read_record(setting.folder({RATE: 0.1}), "a")["state"] == "running"
    first.go_on()
    assert first.next_report() == {"round": 2, "objective": 1.0}
    first.go_on()
    working.join(10)
    # The job is not done again: its folders are there, which would end it.
    assert second.next_report() == {"round": 2, "objective": 1.0}
    second.go_on()
    assert second.next_report() is None
    waiting.join(10)
    found = read_trial(setting.folder({RATE: 0.1}), "a", {RATE: 0.1}, setting.tuning, None)
    assert (found.state, found.last_round, found.objective, found.error) == ("finished", 2, 1.0, None)


def test_a_trial_that_never_had_its_folder_leaves_nothing_in_it(setting, monkeypatch):
    monkeypatch.setattr(trial, "LOCK_PATIENCE_S", 0.1)
    folder = setting.folder({RATE: 0.1})
    with Store(folder).lock(), pytest.raises(JobError, match="is working on this run folder"):
        TrialProcess(setting).run({RATE: 0.1})
    assert read_record(folder, "a") == {}


def test_two_searches_in_a_folder_keep_their_figures_apart(setting, monkeypatch):
    monkeypatch.setattr(trial, "run_job", lambda *_, **__: None)
    other = dataclasses.replace(setting, tuning=setting.tuning.model_copy(update={"objective": "vendi"}), name="b")
    for one, figures in ((setting, {"held_out_loss": 1.0}), (other, {"vendi": 7.0})):
        monkeypatch.setattr(trial, "measure", lambda *_, figures=figures: figures)
        process = TrialProcess(one)
        process.go_on()
        process.run({RATE: 0.1})
    folder = setting.folder({RATE: 0.1})
    assert folder == other.folder({RATE: 0.1})
    found = [read_trial(folder, one.name, {RATE: 0.1}, one.tuning, None) for one in (setting, other)]
    assert [(one.objective, one.figures) for one in found] == [(1.0, {"held_out_loss": 1.0}), (7.0, {"vendi": 7.0})]


def result(error: Exception | None = None) -> SimpleNamespace:
    """What Ray Tune gives of a trial: a choice by its number."""
    return SimpleNamespace(config={RATE: 0}, error=error)


def test_of_trials_of_equal_settings_the_one_that_did_not_fail_counts(setting):
    lost, folder = JobError("its process was lost"), setting.folder({RATE: 0.1})
    write_json(record_file(folder, "a"), {"state": "running", "rounds": [{"round": 1, "held_out_loss": 2.0}]})
    for results in ([result(lost), result()], [result(), result(lost)]):
        [found] = _trials(setting, results)
        assert (found.state, found.last_round, found.error) == ("stopped", 1, None)
    write_json(record_file(folder, "a"), {"state": "finished", "rounds": [], "figures": {"held_out_loss": 1.0}})
    [found] = _trials(setting, [result(lost)])
    assert (found.state, found.objective) == ("finished", 1.0)
