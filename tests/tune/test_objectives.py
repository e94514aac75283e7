"""What trials can be compared by, and what is refused or said before they are."""

from __future__ import annotations

import pytest

from divsel_ray.errors import InputError
from divsel_ray.tune.objectives import FIGURES, cautions, check_figures, figure_of, figures_wanted, mode_of, rows_by
from tests.tune.searches import REFINED, search


def check(tuning) -> None:
    check_figures(tuning, [tuning.config_of(point) for point in tuning.corners()])


def test_each_figure_knows_which_way_is_better(tmp_path):
    assert mode_of(search(tmp_path)) == "max"
    assert mode_of(search(tmp_path, objective="held_out_loss")) == "min"
    assert mode_of(search(tmp_path, objective="evaluate:gsm8k")) == "max"
    assert mode_of(search(tmp_path, mode="min")) == "min"


def test_of_every_figure_more_is_better_but_of_losses_gaps_and_copies():
    less = {name for name, figure in FIGURES.items() if figure.mode == "min"}
    assert less == {"copies", "held_out_loss", "train_loss", "held_out_gap", "mean_gap"}
    assert FIGURES.keys() - less == {
        *("clusters_covered", "cluster_entropy", "nearest_distance", "vendi", "simplified_silhouette", "held_out_reward")
    }


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
        ({**REWARDED, "objective": "vendi"}, "scheduler asha: vendi is not known after each round; use one of held_out_loss"),
        ({**REWARDED, "search": {"budget": {"choice": [12, 24]}}}, "asha: trials with different budget .* remove budget"),
        ({**REWARDED, "search": {"refine.rounds": {"choice": [2, 3]}}}, "asha: trials with different refine.rounds"),
    ],
)
def test_figures_that_trials_will_not_have_are_refused(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        check(search(tmp_path, **changes))


def test_more_of_a_perplexity_is_not_taken_for_better(tmp_path):
    how = {"job": {**REFINED, "reward": {"perplexity": "lm"}}, "objective": "held_out_reward"}
    with pytest.raises(InputError, match=r"held_out_reward: higher is not better with reward\.perplexity; set mode"):
        check(search(tmp_path, **how))
    check(search(tmp_path, **how, mode="min"))
    check(search(tmp_path, **{**how, "objective": "held_out_loss"}, measures=["held_out_reward"]))


def test_figures_that_trials_will_have_pass(tmp_path):
    tuning = search(tmp_path, **REWARDED, measures=["vendi", "simplified_silhouette", "evaluate:gsm8k", "held_out_loss"])
    check(tuning)
    assert {name: figure_of(name).of for name in figures_wanted(tuning)} == {
        "held_out_loss": "round",
        "vendi": "selection",
        "simplified_silhouette": "clusters",
        "evaluate:gsm8k": "benchmark",
    }


LESS = ["wikitext", "wikitext:word_perplexity", "arc:brier_score", "lambada_openai", "pile_arxiv", "c4", "mine:bits_per_byte"]


@pytest.mark.parametrize("name", LESS)
def test_a_benchmark_of_which_less_may_be_better_needs_a_mode(tmp_path, name):
    how = {"job": REFINED, "objective": f"evaluate:{name}"}
    with pytest.raises(InputError, match=f"objective evaluate:{name}: lower may be better for this .*; set mode to min or max"):
        check(search(tmp_path, **how))
    check(search(tmp_path, **how, mode="min"))
    check(search(tmp_path, job=REFINED, objective="held_out_loss", measures=[f"evaluate:{name}"]))


@pytest.mark.parametrize("name", ["gsm8k", "humaneval", "lambada_openai:acc", "compiler", "winogrande"])
def test_a_benchmark_of_which_more_is_better_needs_none(tmp_path, name):
    tuning = search(tmp_path, job=REFINED, objective=f"evaluate:{name}")
    check(tuning)
    assert mode_of(tuning) == "max"


def test_a_figure_that_a_setting_moves_by_itself_is_pointed_out(tmp_path):
    assert cautions(search(tmp_path)) == []
    [line] = cautions(search(tmp_path, search={"budget": {"choice": [12, 24]}}))
    assert line.startswith("vendi also depends directly on budget")
    [line] = cautions(search(tmp_path, job=REFINED, objective="held_out_loss", search={"seed": {"choice": [0, 1]}}))
    assert "held-out rows vary here with seed" in line


SCALES = {
    "reward.model": ["a", "b"],
    "pool.data": [["a.jsonl"], ["b.jsonl"]],
    "clean.min_tokens": [1, 2],
    "seed": [0, 1],
}


@pytest.mark.parametrize("objective", ["held_out_gap", "mean_gap", "held_out_reward"])
@pytest.mark.parametrize("place", SCALES)
def test_a_figure_in_units_of_a_reward_model_that_varies_is_pointed_out(tmp_path, objective, place):
    said = f"{objective} is in units of the reward model, which varies between the trials"
    how = {"job": REFINED, "objective": objective}
    assert said in cautions(search(tmp_path, **how, search={place: {"choice": SCALES[place]}}))
    assert cautions(search(tmp_path, **how)) == []
    assert said not in cautions(search(tmp_path, job=REFINED, search={place: {"choice": SCALES[place]}}))


ROWS = {
    "seed": [0, 1],
    "pool.data": [["a.jsonl"], ["b.jsonl"]],
    "pool.turns": ["all", "first"],
    "clean.near_duplicates": [None, 0.8],
    "clean": [{"min_tokens": 8}, {"min_tokens": 16}],
    "select.exclude": [None, "ids.txt"],
    "select.include": [None, "ids.txt"],
    "select.missing": ["mean", "drop"],
    "refine.held_out": [8, 16],
}


@pytest.mark.parametrize("place", ROWS)
def test_what_decides_the_rows_is_pointed_out_where_it_varies(tmp_path, place):
    tuning = search(tmp_path, job=REFINED, objective="held_out_loss", search={place: {"choice": ROWS[place]}})
    assert rows_by(tuning) == [place]
    [line] = cautions(tuning)
    assert line == f"held-out rows vary here with {place}, so figures also differ because of the rows"


def test_settings_of_the_pool_and_of_the_draw_that_keep_its_rows_are_not(tmp_path):
    others = {
        "pool.partition_bytes": [2048, 4096],
        "pool.tokenizer": ["a", "b"],
        "pool.max_bad_rows": [1, 2],
        "cluster.k": [2, 4],
    }
    others |= {"select.sampler": ["kmq", "kmclosest"], "refine.held_out": [8, 16]}
    tuning = search(tmp_path, job=REFINED, search={place: {"choice": values} for place, values in others.items()})
    assert rows_by(tuning) == ["refine.held_out"]
