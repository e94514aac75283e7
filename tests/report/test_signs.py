"""Each detector on figures made by hand: provoked, and just not provoked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from divsel_ray.report.facts import Run, read_run
from divsel_ray.report.page import write_report
from divsel_ray.report.records import Mean
from divsel_ray.report.rounds import Round, Training, Update
from divsel_ray.report.signs import find_signs, looked_at, recorded_signs
from divsel_ray.store import write_json

MakeRun = Callable[..., Path]
K = 3


def training(loss: float | None, base: float | None = 3.0) -> Training:
    return Training(steps=3, losses=[3.0], held_out_loss_base=base, held_out_loss=loss)


def update(moved: float = 0.2, **other: object) -> Update:
    values = {"told_apart": True, "scored": 30, "clusters_scored": K, "spread": 1.0, "error": 0.3, **other}
    return Update(after=[0.5, 0.3, 0.2], moved=moved, **values)


def make_round(number: int, loss: float | None = 2.5, reward: float = 1.0, **other: object) -> Round:
    values = {"update": update(), "new_by_cluster": [3, 2, 1], **other}
    mean = Mean(reward, 0.1, 16)
    return Round(number, 6 * number, 6, [0.5, 0.3, 0.2], 1.0, training(loss), held_out_reward=mean, **values)


@pytest.fixture
def healthy(make_run: MakeRun) -> Run:
    run = read_run(make_run(rounds=2))
    rounds = [make_round(1, 2.6), make_round(2, 2.5)]
    return replace(run, rounds=rounds, base_reward=Mean(0.9, 0.1, 16))


def names(run: Run) -> list[str]:
    return [sign.name for sign in find_signs(run)]


def with_rounds(run: Run, *rounds: Round) -> Run:
    return replace(run, rounds=rounds)


def with_updates(run: Run, *updates: Update) -> Run:
    return replace(run, rounds=[replace(one, update=new) for one, new in zip(run.rounds, updates, strict=True)])


def test_a_healthy_run_shows_none(healthy: Run) -> None:
    assert names(healthy) == []


def test_a_static_run_shows_none(make_run: MakeRun) -> None:
    assert names(read_run(make_run(rounds=0))) == []


def test_rewards_that_rise_with_the_held_out_loss_are_hacking(healthy: Run) -> None:
    run = with_rounds(healthy, make_round(1, 2.5, 1.0), make_round(2, 2.6, 2.0))
    hacking, worse = find_signs(run)
    assert (hacking.name, worse.name) == ("reward hacking", "getting worse")
    assert "since round 1 the reward of its answers to held-out prompts rose from 1 to 2" in hacking.evidence
    assert "rose from 2.500 to 2.600" in hacking.evidence


def test_rewards_that_rise_within_their_noise_are_no_hacking(healthy: Run) -> None:
    # standard errors of 0.1 and 0.1: the difference has one of 0.141
    assert names(with_rounds(healthy, make_round(1, 2.5, 1.0), make_round(2, 2.6, 1.14))) == ["getting worse"]
    assert "reward hacking" in names(with_rounds(healthy, make_round(1, 2.5, 1.0), make_round(2, 2.6, 1.15)))


def test_a_loss_above_the_untuned_models_is_getting_worse(healthy: Run) -> None:
    [sign] = find_signs(with_rounds(healthy, make_round(1, 3.5, 0.5), make_round(2, 3.1, 0.5)))
    assert sign.evidence == "the held-out loss rose from 3.000 (the untuned model) to 3.100 after the last round"


@pytest.mark.parametrize(("base", "found"), [(7.0, []), (8.9, ["a model that reads nonsense"])])
def test_an_untuned_model_that_hardly_beats_guessing_is_named(healthy: Run, base: float, found: list[str]) -> None:
    rounds = [replace(one, training=training(2.5, base)) for one in healthy.rounds]
    assert names(with_rounds(healthy, *rounds)) == found


@pytest.mark.parametrize(("last", "found"), [(2.52, []), (2.53, ["getting worse"])])
def test_a_rise_of_one_percent_counts_as_level(healthy: Run, last: float, found: list[str]) -> None:
    assert names(with_rounds(healthy, make_round(1, 2.5), make_round(2, last))) == found


def test_without_held_out_rows_nothing_is_said_of_the_loss(healthy: Run) -> None:
    assert names(with_rounds(healthy, make_round(1, None), make_round(2, None))) == []


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        ({}, "too mild"),
        ({"told_apart": False}, "shrinkage removed the differences"),
        ({"told_apart": False, "scored": 11}, "scores only 3.7 rows per cluster"),
        ({"agreement": 0.3}, "second opinion contradicts"),
    ],
)
def test_weights_that_hardly_move_are_stalled_and_the_cause_is_named(healthy: Run, other: dict, cause: str) -> None:
    signs = find_signs(with_updates(healthy, update(0.009, **other), update(0.002, **other)))
    [stalled] = [sign for sign in signs if sign.name == "stalled weights"]
    assert cause in stalled.cause
    assert "0.90%" in stalled.evidence


def test_weights_that_move_in_one_round_are_not_stalled(healthy: Run) -> None:
    assert names(with_updates(healthy, update(0.01), update(0.0))) == []


def test_a_cluster_with_most_of_the_last_rows_has_swallowed_the_rest(healthy: Run) -> None:
    # cluster 2 holds 5 of the pool's 30 rows: a sixth, so four times that is two thirds
    last = make_round(2, new_by_cluster=[1, 0, 5])
    [sign] = find_signs(with_rounds(healthy, healthy.rounds[0], last))
    assert sign.evidence == "cluster 2 has 83% of the last round's new rows, and 16.7% of the pool"
    assert names(with_rounds(healthy, healthy.rounds[0], make_round(2, new_by_cluster=[1, 1, 4]))) == []


def test_a_cluster_with_most_of_the_weight_has_swallowed_the_rest(healthy: Run) -> None:
    taken = replace(update(), after=[0.1, 0.1, 0.8])
    assert names(with_updates(healthy, update(), taken)) == ["one cluster swallowed the rest"]


def test_a_large_cluster_with_its_share_has_swallowed_nothing(healthy: Run) -> None:
    last = make_round(2, new_by_cluster=[6, 0, 0])  # cluster 0 holds more than half of the pool
    assert names(with_rounds(healthy, healthy.rounds[0], last)) == []


def test_scores_that_tell_no_clusters_apart_in_most_rounds_are_noisy(healthy: Run) -> None:
    noisy = update(error=1.1)
    assert names(with_updates(healthy, noisy, noisy)) == ["noisy scores"]
    assert names(with_updates(healthy, update(), noisy)) == []
    assert names(with_updates(healthy, update(told_apart=False), noisy)) == ["noisy scores"]


def test_noise_that_is_not_known_is_called_so(healthy: Run) -> None:
    alone = update(told_apart=False, error=None)
    [sign] = find_signs(with_updates(healthy, alone, alone))
    assert sign.evidence.endswith("(last: spread 1, standard error unknown)")
    assert names(with_updates(healthy, update(error=None), update(error=None))) == []


def test_what_was_not_measured_is_not_said_to_be_well(healthy: Run) -> None:
    well = ["weights move", "no cluster swallows the others", "scores distinguish clusters"]
    held_out = ["the held-out loss does not rise", "rewards do not rise at its expense"]
    assert looked_at(healthy) == held_out + well
    assert looked_at(with_rounds(healthy, make_round(1, None), make_round(2, None))) == well
    unrewarded = [replace(one, held_out_reward=None) for one in healthy.rounds]
    assert looked_at(with_rounds(healthy, *unrewarded)) == held_out[:1] + well
    far = replace(healthy, clustering=replace(healthy.clustering, silhouette=0.25))
    assert looked_at(far)[-1] == "rows are closer to the rest of their cluster than to others (silhouette 0.250)"


def test_without_shrinkage_or_known_noise_nothing_is_said_of_the_scores(healthy: Run) -> None:
    refine = healthy.config.refine
    assert refine is not None
    raw = refine.model_copy(update={"weights": refine.weights.model_copy(update={"shrinkage": False})})
    run = replace(healthy, config=healthy.config.model_copy(update={"refine": raw}))
    assert "scores distinguish clusters" in looked_at(run)
    unknown = update(error=None)
    assert "scores distinguish clusters" not in looked_at(with_updates(run, unknown, unknown))


@pytest.mark.parametrize(("silhouette", "found"), [(0.019, ["clusters that hardly differ"]), (0.02, []), (None, [])])
def test_a_low_silhouette_is_a_sign(healthy: Run, silhouette: float | None, found: list[str]) -> None:
    assert names(replace(healthy, clustering=replace(healthy.clustering, silhouette=silhouette))) == found


def test_signs_stand_in_the_page_and_in_the_manifest(make_run: MakeRun) -> None:
    folder = make_run(rounds=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    next(one for one in manifest["stages"] if one["stage"] == "round-2/train")["facts"]["held_out_loss"] = 9.0
    write_json(folder / "manifest.json", manifest)
    page = write_report(folder).read_text(encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [sign.name for sign in recorded_signs(folder)] == [sign["name"] for sign in manifest["signs"]]
    [sign] = manifest["signs"]
    assert sign["name"] == "getting worse"
    assert all(sign[part][1:] in page for part in ("name", "evidence", "cause"))
    assert write_report(folder).read_text(encoding="utf-8") == page


def test_the_page_says_only_what_was_looked_at(make_run: MakeRun) -> None:
    folder = make_run(rounds=2)
    assert "Nothing stands out: the held-out loss does not rise, rewards" in write_report(folder).read_text(encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text())
    for one in manifest["stages"]:
        if one["stage"].endswith("/train"):
            one["facts"] |= {"held_out_loss": None, "held_out_loss_base": None}
    write_json(folder / "manifest.json", manifest)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Nothing stands out: weights move, no cluster swallows the others, scores distinguish clusters." in page


def test_of_a_static_selection_without_vectors_the_page_says_that_nothing_was_measured(make_run: MakeRun) -> None:
    page = write_report(make_run(rounds=0)).read_text(encoding="utf-8")
    assert "No checks were possible" in page
    assert "Nothing stands out" not in page
