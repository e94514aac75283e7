"""Trials in their order, and what is written and printed of them."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser

import pytest
from rich.console import Console

from divsel_ray.config.files import load_config
from divsel_ray.store import write_json
from divsel_ray.tune.chart import axes_of, number_axis, parallel_figure, safe, setting_axis
from divsel_ray.tune.outcome import compare, read_trial
from divsel_ray.tune.page import render_page, write_outcome
from divsel_ray.tune.record import record_file
from divsel_ray.tune.table import outcome_lines, trials_table
from tests.tune.searches import search, trial


def test_finished_trials_come_first_then_the_farthest_stopped_then_failed(tmp_path):
    trials = [
        trial("failed", None, state="failed"),
        trial("early", 9.0, state="stopped", rounds=1),
        trial("worse", 1.0),
        trial("late", 0.5, state="stopped", rounds=2),
        trial("better", 3.0),
    ]
    found = compare(search(tmp_path), trials, 1)
    assert [one.key for one in found.trials] == ["better", "worse", "late", "early", "failed"]
    assert found.best is not None
    assert found.best.key == "better"
    least = compare(search(tmp_path, mode="min"), trials, 1)
    assert [one.key for one in least.finished] == ["worse", "better"]


def test_an_objective_of_zero_is_known(tmp_path):
    record = {"state": "finished", "figures": {"vendi": 0.0}, "rounds": [{"round": 1, "vendi": 5.0}]}
    write_json(record_file(tmp_path / "a", "s"), record)
    assert read_trial(tmp_path / "a", "s", {}, search(tmp_path), None).objective == 0.0


def test_a_trial_that_finished_stays_finished_whatever_became_of_an_equal_one(tmp_path):
    write_json(record_file(tmp_path / "a", "s"), {"state": "finished", "figures": {"vendi": 2.0}, "rounds": []})
    found = read_trial(tmp_path / "a", "s", {}, search(tmp_path), RuntimeError("another one works on it"))
    assert (found.state, found.objective, found.error) == ("finished", 2.0, None)
    assert read_trial(tmp_path / "a", "other", {}, search(tmp_path), None).state == "failed"


def test_a_trial_that_neither_ended_nor_failed_was_stopped_after_its_last_round(tmp_path):
    write_json(record_file(tmp_path / "a", "s"), {"state": "running", "rounds": [{"round": 1, "vendi": 2.5}]})
    found = read_trial(tmp_path / "a", "s", {}, search(tmp_path), None)
    assert (found.state, found.last_round, found.objective) == ("stopped", 1, 2.5)
    failed = read_trial(tmp_path / "a", "s", {}, search(tmp_path), RuntimeError("first\nlast"))
    assert (failed.state, failed.error) == ("failed", "last")
    assert read_trial(tmp_path / "none", "s", {}, search(tmp_path), None).state == "failed"


def test_measures_are_correlated_with_the_objective_over_finished_trials(tmp_path):
    trials = [trial(str(n), float(n), settings={"cluster.k": n}, copies=-n / 10) for n in range(5)]
    trials.append(trial("out", 9.0, state="stopped", rounds=1))
    found = compare(search(tmp_path, measures=["copies", "vendi"]), trials, 1)
    [one] = found.correlations
    assert (one.measure, one.trials, one.r) == ("copies", 5, pytest.approx(-1))
    assert next(outcome_lines(found)) == "copies and vendi: Pearson r = -1.00 over 5 trials; too few for an interval"


def test_an_interval_over_few_trials_says_so(tmp_path):
    figures = [(1, 1), (2, 2), (3, 1), (4, 3), (5, 4)]
    trials = [trial(str(n), float(v), settings={"cluster.k": n}, copies=n / 10) for n, v in figures]
    [line] = outcome_lines(compare(search(tmp_path, measures=["copies"]), trials, 1))
    assert line == (
        "copies and vendi: Pearson r = 0.85 over 5 trials, 95 % interval -0.13 to 0.99 (Fisher z; unreliable with few points)"
    )


def test_trials_of_different_seeds_are_correlated_within_each(tmp_path):
    tuning = search(tmp_path, search={"seed": {"choice": [0, 1]}, "cluster.k": {"choice": [2, 3, 4]}}, measures=["copies"])
    trials = [
        trial(f"{seed}-{k}", 100 * seed + value, settings={"seed": seed, "cluster.k": k}, copies=k / 10 - seed)
        for seed in (0, 1)
        for k, value in ((2, 1.0), (3, 2.0), (4, 1.5))
    ]
    found = compare(tuning, trials, 1)
    # Deviations (-1 0 1) and (-0.5 0.5 0) of both seeds: 0.5 / sqrt(2 * 0.5).
    assert next(outcome_lines(found)) == (
        "copies and vendi: Pearson r = 0.50 over 6 trials of 3 points in 2 groups of the same rows; too few for an interval"
    )
    assert "after subtracting the mean of the group of trials on the same rows (one of 2)" in render_page(found)


def test_the_table_has_a_line_for_each_trial(tmp_path):
    console = Console(width=100, record=True, file=io.StringIO())
    trials = [trial("a", 1.0), trial("b", 2.0, state="stopped", rounds=1), trial("c", None, state="failed")]
    found = compare(search(tmp_path), trials, 1)
    console.print(trials_table(found))
    lines = console.export_text().splitlines()
    assert [line.split()[0] for line in lines] == ["trial", "a", "b", "c"]
    assert lines[2].rstrip().endswith("stopped after round 1")
    assert list(outcome_lines(found)) == ["trial c failed: no room"]


def test_the_best_configuration_is_one_that_a_run_takes(tmp_path):
    found = compare(search(tmp_path, "job.seed=7"), [trial("a", 1.0)], 1)
    write_outcome(found, tmp_path)
    config = load_config(tmp_path / "best.yaml")
    assert (config.cluster.k, config.seed, config.budget) == (4, 7, 12)
    record = json.loads((tmp_path / "tune.json").read_text())
    assert (record["best"], record["trials"][0]["settings"]) == ("a", {"cluster.k": 4})


def test_without_a_finished_trial_there_is_no_best_one(tmp_path):
    write_outcome(compare(search(tmp_path), [trial("c", None, state="failed")], 1), tmp_path)
    assert not (tmp_path / "best.yaml").exists()
    assert "No trial finished" in (tmp_path / "tune.html").read_text()
    assert "failed: no room" in (tmp_path / "tune.html").read_text()


class Scripts(HTMLParser):
    """Counts what could run, and links."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts, self.handlers, self.links, self.policy = 0, [], [], ""

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"]


HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}<b>%{x}<a href='javascript:alert(1)'>"


def test_hostile_names_stay_text(tmp_path):
    harmless = search(tmp_path, search={"select.sampler": {"choice": ["kmq", "kmclosest"]}})
    hostile = search(tmp_path, search={"select.sampler": {"choice": [HOSTILE, "kmq"]}}, measures=["copies"])
    counts = []
    for tuning in (harmless, hostile):
        value = tuning.search["select.sampler"].values[0]
        of_trial = trial("a", 1.0, copies=0.5)
        found = compare(tuning, [of_trial.__class__(**{**of_trial.__dict__, "settings": {"select.sampler": value}})], 1)
        page = Scripts()
        page.feed(render_page(found))
        counts.append((page.scripts, page.handlers, page.links))
    assert counts[0] == counts[1]
    assert counts[0][1:] == ([], [])


def test_the_page_allows_no_scripts_but_its_own_and_loads_nothing(tmp_path):
    page = Scripts()
    page.feed(render_page(compare(search(tmp_path), [trial("a", 1.0), trial("b", 2.0)], 1)))
    assert page.policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in page.policy
    assert page.policy.count("'sha256-") == page.scripts > 1


def test_plotlys_markup_is_neutralised():
    assert safe("<b>%{x}&") == "&lt;b&gt;%&#123;x}&amp;"


def test_an_axis_goes_from_the_least_to_the_greatest_value():
    axis = number_axis("a", [1.0, None, 100.0, 10.0], log=True)
    assert axis.places == pytest.approx([0, None, 1, 0.5])
    assert axis.ticks == [(0.0, "1"), (1.0, "100")]
    assert number_axis("a", [3.0, 3.0], log=False).ticks == [(0.5, "3")]
    assert number_axis("a", [], log=False).ticks == []


def test_choices_stand_at_even_distances_in_their_order(tmp_path):
    dimension = search(tmp_path, search={"cluster.k": {"choice": [64, 4, 8]}}).search["cluster.k"]
    axis = setting_axis("k", dimension, [8, 64])
    assert axis.places == [1.0, 0.0]
    assert axis.ticks == [(0.0, "64"), (0.5, "4"), (1.0, "8")]


def test_a_line_for_each_trial_whose_objective_is_known_the_best_on_top(tmp_path):
    trials = [trial("a", 1.0, copies=0.1), trial("b", 2.0, copies=0.2), trial("c", None, state="failed")]
    found = compare(search(tmp_path, measures=["copies"]), trials, 1)
    figure = parallel_figure(found)
    assert [line.hovertemplate.split(",")[0] for line in figure.data] == ["trial a", "trial b"]
    assert list(figure.data[1].y) == [0.0, 1.0, 1.0]
    assert [axis.name for axis in axes_of(found, found.trials[:2])] == ["cluster.k", "copies", "vendi"]
