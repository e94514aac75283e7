from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from divsel_ray.report.card import dataset_card
from divsel_ray.report.facts import read_run
from divsel_ray.report.page import write_report

MakeRun = Callable[..., Path]


def card(folder: Path) -> str:
    return dataset_card(read_run(folder))


@pytest.mark.parametrize("rounds", [0, 2])
def test_the_front_matter_is_what_the_hub_reads(make_run: MakeRun, rounds: int) -> None:
    folder = make_run(rounds=rounds)
    write_report(folder)
    opening, matter, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(matter)
    assert opening == ""
    assert values["size_categories"] == ["n<1K"]
    assert values["configs"] == [{"config_name": "default", "data_files": "selection.jsonl"}]
    assert "data-selection" in values["tags"]
    assert 'load_dataset("json", data_files="selection.jsonl"' in body


def test_every_column_of_a_selection_is_explained(make_run: MakeRun) -> None:
    from divsel_ray.data.export import COLUMNS

    text = card(make_run(rounds=0))
    assert all(f"| `{name}` |" in text for name in COLUMNS)


def test_the_stand_in_is_named_only_where_one_was_fitted(make_run: MakeRun) -> None:
    fitted = card(make_run(rounds=1))
    assert "**Rewards come from a stand-in**, fitted on the pool itself from `package:encoder`" in fitted
    assert "right on 81% of held-out pairs" in fitted


def test_a_named_reward_model_is_named_and_is_no_stand_in(make_run: MakeRun) -> None:
    text = card(make_run(rounds=1, fit=False))
    assert "reward model `some/reward-model`" in text
    assert "stand-in" not in text


def test_a_file_name_cannot_leave_its_code_span(make_run: MakeRun) -> None:
    [line] = [line for line in card(make_run(rounds=0)).splitlines() if line.startswith("- `chats ")]
    assert line.count("`") == 2
    assert line.endswith("`")
