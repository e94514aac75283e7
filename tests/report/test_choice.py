from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from divsel_ray.cluster.criteria import Choice, Recommendation
from divsel_ray.errors import InputError
from divsel_ray.report.choice import choice_figure, read_choice, render_page, write_choice
from tests.cluster.vectors import PLAIN
from tests.report.test_page import Page

FIRST = dataclasses.replace(
    PLAIN,
    k=16,
    rows=2000,
    inertia=400.0,
    simplified_silhouette=0.5,
    silhouette=0.25,
    silhouette_rows=1234,
    stability=0.9,
    stability_deviation=0.0625,
    smallest=40,
    median=120.5,
    largest=400,
)
SECOND = dataclasses.replace(
    FIRST,
    k=64,
    inertia=100.0,
    simplified_silhouette=0.375,
    silhouette=None,
    stability=None,
    stability_deviation=None,
    singletons=5,
    smallest=1,
    converged=False,
)
CHOICE = Choice("vectors & <b>", 2000, 384, 7, {"n_init": 1}, [FIRST, SECOND], None, Recommendation(16, True, "Because <i>."))


def lines(choice: Choice, panel: tuple[int, int]) -> dict[str, list[float | None]]:
    return {trace.name: list(trace.y) for trace in choice_figure(choice).select_traces(row=panel[0], col=panel[1])}


def test_four_panels_show_every_measure() -> None:
    assert lines(CHOICE, (1, 1)) == {"inertia": [400.0, 100.0]}
    assert lines(CHOICE, (1, 2)) == {"simplified, all rows": [0.5, 0.375], "standard, 1,234 rows": [0.25, None]}
    assert lines(CHOICE, (2, 1)) == {"adjusted Rand index": [0.9, None]}
    sizes = lines(CHOICE, (2, 2))
    assert sizes == {"largest": [400, 400], "median": [120.5, 120.5], "smallest": [40, 1], "singletons": [None, 5]}


def test_stability_carries_its_spread_and_k_is_placed_by_doublings() -> None:
    [trace] = choice_figure(CHOICE).select_traces(row=2, col=1)
    assert list(trace.error_y.array) == [0.0625, 0.0]
    assert list(trace.x) == [4.0, 6.0]
    assert list(trace.customdata) == [16, 64]


def test_the_elbow_is_marked_where_there_is_one() -> None:
    with_elbow = dataclasses.replace(CHOICE, elbow=64)
    [_, elbow] = choice_figure(with_elbow).select_traces(row=1, col=1)
    assert (list(elbow.x), list(elbow.y)) == ([6.0], [100.0])


@pytest.mark.parametrize(("preferred", "dash"), [(True, "solid"), (False, "dash")])
def test_the_recommended_k_is_marked_in_every_panel(preferred: bool, dash: str) -> None:
    choice = dataclasses.replace(CHOICE, recommendation=Recommendation(100, preferred, "Because."))
    marks = [shape for shape in choice_figure(choice).layout.shapes if shape.x0 == shape.x1 == math.log2(100)]
    assert [mark.line.dash for mark in marks] == [dash] * 4


def test_the_page_says_what_is_recommended_and_why() -> None:
    text = Page(render_page(CHOICE)).text
    assert "k = 16 is recommended" in text
    assert "Because <i>." in text
    assert "vectors & <b>" in text
    assert "0.90 ± 0.06" in text
    assert "Stopped by cluster.max_iter before convergence: k = 64." in text
    default = dataclasses.replace(CHOICE, recommendation=Recommendation(100, False, "Nothing."))
    assert "No preferred k: keep the default, 100" in Page(render_page(default)).text


def test_the_page_runs_only_the_scripts_it_lists_and_loads_nothing() -> None:
    page = Page(render_page(CHOICE))
    [policy] = [a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv")]
    assert policy is not None
    assert policy.count("'sha256-") == len(page.scripts)
    assert not [a for tag, a in page.elements if a.get("src")]
    assert page.figures == ["figure-choice"]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_choice(CHOICE, tmp_path)
    assert read_choice(tmp_path) == CHOICE
    page = (tmp_path / "choose-k.html").read_bytes()
    write_choice(CHOICE, tmp_path)
    assert (tmp_path / "choose-k.html").read_bytes() == page


def test_a_folder_without_a_choice_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"choose-k.json: no such file"):
        read_choice(tmp_path)
