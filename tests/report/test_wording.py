"""What the page and the card say of other samplers, scores and budgets than the usual ones is true of them too."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from divsel_ray.report.page import write_report
from divsel_ray.store import RUN_MANIFEST, write_json

MakeRun = Callable[..., Path]


def words(folder: Path, **changes: dict[str, Any] | str) -> tuple[str, str]:
    """The texts of the page and the card of a run with these settings in place of its own."""
    manifest = json.loads((folder / RUN_MANIFEST).read_text(encoding="utf-8"))
    for name, value in changes.items():
        manifest["config"][name] = {**manifest["config"][name], **value} if isinstance(value, dict) else value
    write_json(folder / RUN_MANIFEST, manifest)
    page = write_report(folder).read_text(encoding="utf-8")
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    texts = html.unescape(re.sub(r"<[^>]+>", "", body)), (folder / "README.md").read_text(encoding="utf-8")
    return tuple(" ".join(text.split()) for text in texts)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("sampler", "budgets", "alike"),
    [
        ("kmq", True, "within a cluster every row was equally likely"),
        ("kmrandom", True, "within a cluster every row was equally likely"),
        ("random", False, ": every row was equally likely"),
        ("kmclosest", True, None),
        ("kcenter", False, None),
    ],
)
def test_clusters_have_budgets_and_rows_are_equally_likely_only_where_the_sampler_makes_them_so(
    make_run: MakeRun, sampler: str, budgets: bool, alike: str | None
) -> None:
    page, card = words(make_run(rounds=0), select={"sampler": sampler})
    assert ("Cluster budgets were proportional to cluster size; no model was trained." in page) is budgets
    assert ("No model was trained." in page) is not budgets
    assert "No quality was measured" in card
    assert alike in card if alike else "equally likely" not in card


def test_a_budget_of_tokens_is_called_one(make_run: MakeRun) -> None:
    assert "budget 6 tokens" in words(make_run(rounds=0), budget_unit="tokens")[0]


def test_a_perplexity_is_not_taken_for_a_reward(make_run: MakeRun) -> None:
    page, card = words(make_run(rounds=2, fit=False), reward={"model": None, "perplexity": "some/lm"})
    assert "Completions are scored by their perplexity under some/lm. Higher means stranger, not better" in page
    assert "which includes spoiled rows: read the selected rows" in page
    assert "Held-out log perplexity gap" in page
    assert "How much stranger some/lm finds the data’s answer" in page
    assert "the number is the log perplexity: higher means stranger" in page
    assert "Reward gap" not in page
    assert "the number is the reward" not in page
    assert "perplexity under `some/lm`: higher means stranger, not better" in card


def test_the_warning_of_spoiled_rows_is_of_the_lagging_direction_alone(make_run: MakeRun) -> None:
    folder = make_run(rounds=2, fit=False)
    manifest = json.loads((folder / RUN_MANIFEST).read_text(encoding="utf-8"))
    refine = {"weights": {**manifest["config"]["refine"]["weights"], "direction": "learned"}}
    page, _ = words(folder, reward={"model": None, "perplexity": "some/lm"}, refine=refine)
    assert "Higher means stranger, not better" in page
    assert "spoiled rows" not in page
