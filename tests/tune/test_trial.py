"""The process of trials, without Ray: it reports, waits, and always comes to an end."""

from __future__ import annotations

import threading
import time

import pytest

from divsel_ray.errors import InputError, JobError
from divsel_ray.resources import Cluster
from divsel_ray.tune import trial
from divsel_ray.tune.outcome import read_trial
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
        found = read_trial(folder, {RATE: rate}, setting.tuning, None)
        assert (found.state, found.last_round, found.objective) == ("finished", 2, 1.0)


def test_a_trial_that_fails_reports_no_more_and_says_why_in_its_folder(setting, monkeypatch):
    def fail(config, folder, beside):
        raise InputError("no such file")

    monkeypatch.setattr(trial, "run_job", fail)
    process = TrialProcess(setting)
    with pytest.raises(JobError, match=r"^no such file$"):
        process.run({RATE: 0.1})
    assert process.next_report() is None
    found = read_trial(setting.folder({RATE: 0.1}), {RATE: 0.1}, setting.tuning, None)
    assert (found.state, found.error) == ("failed", "no such file")


def test_a_trial_of_settings_that_are_not_allowed_ends_too(setting):
    process = TrialProcess(setting)
    with pytest.raises(InputError, match=f"search, {RATE}=-1: {RATE}: .*greater than 0"):
        process.run({RATE: -1})
    assert process._reports.get(timeout=1) is None
