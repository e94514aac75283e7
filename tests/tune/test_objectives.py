"""What trials can be compared by, and what is refused or said before they are."""

from __future__ import annotations

import pytest

from divsel_ray.errors import InputError
from divsel_ray.tune.objectives import cautions, check_figures, figure_of, figures_wanted, mode_of
from tests.tune.searches import REFINED, search


def check(tuning) -> None:
    check_figures(tuning, [tuning.config_of(point) for point in tuning.corners()])


def test_each_figure_knows_which_way_is_better(tmp_path):
    assert mode_of(search(tmp_path)) == "max"
    assert mode_of(search(tmp_path, objective="held_out_loss")) == "min"
    assert mode_of(search(tmp_path, objective="evaluate:gsm8k")) == "max"
    assert mode_of(search(tmp_path, mode="min")) == "min"


REWARDED = {"job": REFINED, "objective": "held_out_loss", "scheduler": "asha"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "accuracy"}, "'accuracy': expected one of clusters_covered, .*, or evaluate:TASK"),
        ({"objective": "evaluate:"}, "'evaluate:': expected one of"),
        ({"measures": ["held_out_loss"]}, "held_out_loss: only a job with a `refine` section trains a model"),
        ({"objective": "evaluate:gsm8k"}, "evaluate:gsm8k: only a job with a `refine` section"),
        (
            {"job": {**REFINED, "refine": {**REFINED["refine"], "held_out": 0}}, "objective": "held_out_gap"},
            "held_out_gap: needs held-out rows; set refine.held_out",
        ),
        ({**REWARDED, "objective": "vendi"}, "scheduler asha: vendi is not known of each round; take one of held_out_loss"),
        ({**REWARDED, "search": {"budget": {"choice": [12, 24]}}}, "asha: trials of different budget .* leave budget out"),
        ({**REWARDED, "search": {"refine.rounds": {"choice": [2, 3]}}}, "asha: trials of different refine.rounds"),
    ],
)
def test_figures_that_trials_will_not_have_are_refused(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        check(search(tmp_path, **changes))


def test_figures_that_trials_will_have_pass(tmp_path):
    tuning = search(tmp_path, **REWARDED, measures=["vendi", "simplified_silhouette", "evaluate:gsm8k", "held_out_loss"])
    check(tuning)
    assert {name: figure_of(name).of for name in figures_wanted(tuning)} == {
        "held_out_loss": "round",
        "vendi": "selection",
        "simplified_silhouette": "clusters",
        "evaluate:gsm8k": "benchmark",
    }


def test_a_figure_that_a_setting_moves_by_itself_is_pointed_out(tmp_path):
    assert cautions(search(tmp_path)) == []
    [line] = cautions(search(tmp_path, search={"budget": {"choice": [12, 24]}}))
    assert line.startswith("vendi also depends on budget alone")
    [line] = cautions(search(tmp_path, job=REFINED, objective="held_out_loss", search={"seed": {"choice": [0, 1]}}))
    assert "held-out rows vary" in line
