from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from divsel_ray.errors import InputError
from divsel_ray.report.html import measure
from divsel_ray.report.page import write_report
from divsel_ray.store import write_json

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """What a browser would make of the page: elements, text, figures and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def figures(self) -> list[str | None]:
        return [a.get("id") for _, a in self.elements if a.get("class") == "plotly-graph-div"]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_a_refined_run_shows_every_figure_and_the_library_once(make_run: MakeRun) -> None:
    page = read(write_report(make_run(rounds=2)))
    assert page.figures == [f"figure-{name}" for name in ("gaps", "losses", "weights", "clusters", "quality")]
    assert [len(script) > 1_000_000 for script in page.scripts].count(True) == 1
    assert len(page.scripts[1]) > 1_000_000, "the library comes before the first figure's own script"


def test_the_headline_and_the_key_figures_say_what_was_selected(make_run: MakeRun) -> None:
    text = read(write_report(make_run(rounds=2))).text
    assert "6 of 30 instructions selected" in text
    assert "in 2 rounds of drawing" in text
    assert "of 33 distinct rows" in text
    assert "bad rows of 40 read" in text
    assert "3.25 → 2.25" in text  # held-out loss
    assert "2.00 → 1.00" in text  # held-out gap: mean of 1 and 3, then of 0.5 and 1.5


def test_reasons_for_bad_rows_are_listed_by_their_number(make_run: MakeRun) -> None:
    text = read(write_report(make_run(rounds=0))).text
    listed = text[text.index("Rows set aside") :]
    assert 0 < listed.index("no reply") < listed.index("not JSON 1")


def test_direction_update_rule_and_bound_guards_are_said(make_run: MakeRun) -> None:
    text = read(write_report(make_run(rounds=2))).text
    assert "Direction lagging : clusters with larger gaps" in text
    assert "Update rule softmax" in text
    assert "In round 2 the gaps differed between clusters no more than by chance" in text
    assert "In round 1 the gaps differed" not in text


def test_guards_that_held_a_weight_are_listed_and_no_others(make_run: MakeRun) -> None:
    text = read(write_report(make_run(rounds=2))).text
    assert "A cluster … Round 1 Round 2 was limited by the maximum step per round 1 1" in text
    assert "was raised to the floor" not in text


def test_a_stand_in_reward_is_named_in_plain_words(make_run: MakeRun) -> None:
    text = read(write_report(make_run(rounds=1))).text
    assert "The rewards on this page come from a stand-in." in text
    assert "right on 81 % of held-out pairs" in text


def test_a_named_reward_model_brings_no_stand_in_notice(make_run: MakeRun) -> None:
    assert "stand-in" not in read(write_report(make_run(rounds=1, fit=False))).text


def test_held_out_answers_stand_side_by_side_with_their_rewards(make_run: MakeRun) -> None:
    text = read(write_report(make_run(rounds=2))).text
    assert re.search(
        r"Data’s answer 4\.00 gold answer Untuned model [13]\.00 untuned answer After round 2 [23]\.50 answer 2", text
    )


def test_texts_of_rows_are_cut(make_run: MakeRun) -> None:
    page = read(write_report(make_run(rounds=1)))
    replies = [text for text in page.texts if text.startswith("reply ")]
    assert replies
    assert all(len(text) <= 602 and text.endswith("…") for text in replies)


def test_hostile_text_is_shown_and_never_run(make_run: MakeRun) -> None:
    folder = make_run(rounds=2)
    page = read(write_report(folder))
    assert "<script>alert(1)</script></script><img src=x onerror=alert(2)> {{ 7*7 }} {% raw %}" in page.text
    assert not any("alert(" in script for script in page.scripts)
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "link", "object", "embed")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_only_the_scripts_of_the_page_itself_are_allowed_to_run(make_run: MakeRun) -> None:
    page = read(write_report(make_run(rounds=1)))
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy") or ""
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    assert allowed == {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts}
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


@pytest.mark.parametrize("rounds", [0, 1])
def test_nothing_is_loaded_from_anywhere(make_run: MakeRun, rounds: int) -> None:
    path = write_report(make_run(rounds=rounds))
    page = read(path)
    loading = [(tag, a) for tag, a in page.elements if a.get("src") or (a.get("href") and tag != "a") or a.get("srcset")]
    assert loading == []
    assert "@import" not in path.read_text(encoding="utf-8").split("</style>")[0]


def test_a_static_selection_has_no_sections_about_rounds(make_run: MakeRun) -> None:
    page = read(write_report(make_run(rounds=0)))
    assert page.figures == ["figure-clusters"]
    assert "in one static draw" in page.text
    for heading in ("Round by round", "Answers to held-out prompts", "Held-out loss", "Reward gap"):
        assert heading not in page.text


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(rounds=2)
    first = write_report(folder).read_bytes()
    card = (folder / "README.md").read_bytes()
    assert write_report(folder).read_bytes() == first
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert write_report(moved).read_bytes() == first
    assert (moved / "README.md").read_bytes() == card


def test_the_date_is_that_of_the_run(make_run: MakeRun) -> None:
    folder = make_run(rounds=0)
    assert "Finished 2026-01-02 03:04 UTC" in read(write_report(folder)).text


def test_the_shown_settings_make_the_same_configuration(make_run: MakeRun) -> None:
    from divsel_ray.config.files import parse_config
    from divsel_ray.report.facts import read_run

    folder = make_run(rounds=2)
    page = read(write_report(folder))
    settings = next(text for text in page.texts if text.startswith("budget:"))
    assert parse_config(settings, "page") == read_run(folder).config


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (float("nan"), "–"), (2.0, "2.00"), (-0.001057, "−0.00106"), (99.0, "99.0"), (1234.5, "1,234"), (0.0, "0.00")],
)
def test_measures_keep_three_significant_digits_on_any_scale(value: float | None, shown: str) -> None:
    assert measure(value) == shown


def test_a_folder_without_a_finished_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished run in this folder; run divsel run first$") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_diversity_stands_beside_random_subsets(make_run: MakeRun) -> None:
    page = write_report(make_run(rounds=0)).read_text(encoding="utf-8")
    assert "Compared with 20 random subsets of the same size" in page
    assert "Vendi score (effective number of different rows)</td><td>0.5" in page
    assert "Sources: a " in page


def test_where_only_some_rows_were_scored_the_histogram_says_so(make_run: MakeRun) -> None:
    folder = make_run(rounds=1)
    text = read(write_report(folder)).text
    assert "By reward . 1 row has no quality" in text
    assert "drawn for scoring" not in text
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["quality"]["oversample"] = 2.0
    [pool] = [stage for stage in manifest["stages"] if stage["stage"] == "pool"]
    pool["facts"]["rows"] = 1_000
    write_json(folder / "manifest.json", manifest)
    text = read(write_report(folder)).text
    assert "“Pool” refers to the 30 rows drawn for scoring ( quality.oversample )" in text
    assert "evenly spaced" not in text
