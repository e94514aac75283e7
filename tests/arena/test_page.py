"""Figures, page and table of a result made by hand; labels are hostile texts."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from divsel_ray.arena.bootstrap import Interval
from divsel_ray.arena.contenders import Contender
from divsel_ray.arena.page import render_page, write_page
from divsel_ray.arena.result import Result, Standing, tasks_of, write_result
from divsel_ray.arena.table import standings_table
from tests.report.conftest import HOSTILE
from tests.report.test_page import Page

CONTENDERS = {
    "base": Contender("base", "base", "random"),
    "random": Contender("random", "static", "random"),
    "kmq": Contender("kmq", "static", "kmq"),
    "random-long": Contender("random-long", "static", "random", long=True),
    "iterative-lagging": Contender("iterative-lagging", "iterative", "kmq", "lagging"),
    "iterative-shuffled": Contender("iterative-shuffled", "iterative", "kmq", "shuffled"),
}
LOSSES = {"base": 3.0, "random": 2.5, "kmq": 2.0, "random-long": 1.5, "iterative-lagging": 2.55, "iterative-shuffled": 2.7}


def standing(name):
    loss = LOSSES[name]
    gaps = {
        other: Interval(loss - value, loss - value - 0.1, loss - value + 0.1) for other, value in LOSSES.items() if other != name
    }
    one = Interval(loss, loss - 0.2, loss + 0.2)
    if name == "base":
        return Standing(CONTENDERS[name], one, [loss], gaps)
    share = Interval(0.25, 0.2, 0.3)
    return Standing(CONTENDERS[name], one, [loss] * 3, gaps, share, share, 1, 960.0, 90.0, 12.0)


@pytest.fixture
def result():
    labels = [f"a {HOSTILE}"] * 4 + ["b"] * 3 + ["rare"]
    losses = {name: np.full((1 if name == "base" else 3, 8), value) for name, value in LOSSES.items()}
    return Result(
        standings=[standing(name) for name in sorted(LOSSES, key=lambda name: LOSSES[name])],
        tasks=tasks_of(labels, losses),
        pool={"rows": 100, "evaluation": 8, "labels": 3, "faults": {"other": 10, "shuffled": 5}},
        preparation={"embed": {"cpu_s": 30.0, "gpu_s": 0.0}},
        budget=12,
        unit="rows",
        k=4,
        references=["random"],
        settings={"seeds": [0, 1, 2], "spoil": {"share": 0.15}, "bootstrap": 500, "clusters": "per_seed", "note": HOSTILE},
        job={"select": {"sampler": "kmq"}, "refine": {"train": {"epochs": 1}}, "pool": {"data": [HOSTILE]}},
    )


def test_losses_by_label_are_means_over_seeds_and_rows_the_largest_label_first():
    table = np.array([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]])
    found = tasks_of(["x", "x", "y"], {"one": table})
    assert [(task.label, task.rows, task.losses) for task in found] == [("x", 2, {"one": 2.5}), ("y", 1, {"one": 9.0})]


def test_the_page_opens_and_hostile_texts_are_texts(result):
    page = render_page(result)
    found = Page(page)
    tags = [tag for tag, _ in found.elements]
    assert tags.count("table") == 3
    assert "img" not in tags
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7*7 }}" in page
    assert "default-src &#39;none&#39;" in page


def test_the_page_says_who_leads_at_equal_budget_and_what_equal_compute_is(result):
    page = render_page(result)
    assert "Kmq has the lowest loss, below random" in page
    assert result.best.contender.name == "kmq"
    columns = ["random, as long as iterative", "kmq", "iterative kmq, shuffled feedback (control)"]
    assert re.findall(r"<th>Compared with (.*?)</th>", page) == columns
    # 2.55 - 1.5 of the iterative contender, against random at equal compute.
    assert "1.0500" in page


def test_a_lead_that_is_chance_does_not_hide_who_beats_random(result):
    unsure = [
        replace(one, differences={**one.differences, "random": Interval(-0.5, -1.1, 0.1)}) if one is result.best else one
        for one in result.standings
    ]
    assert "No sampler is shown to beat random" in render_page(replace(result, standings=unsure))
    lagging = Interval(-0.1, -0.15, -0.05)
    behind = [
        replace(one, differences={**one.differences, "random": lagging}) if one.contender.name == "iterative-lagging" else one
        for one in unsure
    ]
    assert "<h1>Iterative kmq, lagging has a loss below random’s</h1>" in render_page(replace(result, standings=behind))


def test_a_label_of_few_rows_is_only_in_the_record(result, tmp_path):
    write_result(result, tmp_path)
    assert "rare" not in render_page(result)
    assert [task["label"] for task in json.loads((tmp_path / "arena.json").read_text())["tasks"]][-1] == "rare"


def test_the_same_result_gives_the_same_bytes(result, tmp_path):
    first = write_page(result, tmp_path).read_bytes()
    assert write_page(result, tmp_path).read_bytes() == first


def test_verdicts_are_those_of_the_intervals(result):
    verdicts = {name: one.verdict for name, one in result.of.items()}
    assert verdicts["kmq"] == "better than random"
    assert verdicts["iterative-shuffled"] == "worse than random"
    assert verdicts["iterative-lagging"] == "not told apart from random"
    assert verdicts["random"] == ""


def test_the_table_fits_eighty_columns(result):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(standings_table(result))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
