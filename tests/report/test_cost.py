from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from divsel_ray.config import PricesConfig
from divsel_ray.report.cost import bill
from divsel_ray.report.facts import Run, Timing, read_run
from divsel_ray.report.page import write_report
from divsel_ray.report.rounds import Training
from divsel_ray.store import write_json
from divsel_ray.usage import Usage

MakeRun = Callable[..., Path]
HOUR = 3600.0


def timing(stage: str, cpus: float, gpus: float = 0.0) -> Timing:
    """A stage of one hour."""
    return Timing(stage, HOUR, False, Usage(HOUR, cpus * HOUR, gpus * HOUR, 2 * HOUR, 2.0, 1))


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    """Three hours for a static selection, five of rounds, one of the control and its draw."""
    stages = {"pool": 1, "reward": 1, "quality": 1, "round-1/draw": 1, "round-1/train": 2, "round-2/train": 2}
    timings = [timing(stage, cpus) for stage, cpus in {**stages, "static/draw": 1, "static/train": 2}.items()]
    control = Training(3, [], 3.25, 2.55)
    return replace(read_run(make_run(rounds=2)), timings=timings, control=control)


def test_refinement_is_charged_what_it_needs_beyond_a_static_selection(run: Run) -> None:
    found = bill(run).refinement
    assert found is not None
    assert found.static.cpu_s == 3 * HOUR
    assert found.rounds.cpu_s == 5 * HOUR
    # the last round's loss is 2.25, the control's 2.55; five hours against the two of one training
    assert found.gain == pytest.approx(0.3)
    assert found.extra_hours == pytest.approx(3)
    assert found.unit == "CPU-hour"
    assert found.gain_per_hour == pytest.approx(0.1)


def test_a_reward_model_that_only_the_rounds_need_is_theirs(run: Run) -> None:
    config = run.config.model_copy(update={"quality": run.config.quality.model_copy(update={"source": "none"})})
    found = bill(replace(run, config=config)).refinement
    assert found is not None
    assert (found.static.cpu_s, found.rounds.cpu_s) == (2 * HOUR, 6 * HOUR)


def test_hours_of_gpus_count_where_there_are_any(run: Run) -> None:
    timings = [*run.timings, timing("round-2/generate", 1, gpus=4)]
    found = bill(replace(run, timings=timings)).refinement
    assert found is not None
    assert (found.unit, found.extra_hours) == ("GPU-hour", 4)


def test_without_the_control_what_was_gained_is_unknown(run: Run) -> None:
    found = bill(replace(run, control=None)).refinement
    assert found is not None
    assert (found.gain, found.extra_hours, found.gain_per_hour) == (None, None, None)


def test_money_is_hours_times_prices_and_unknown_without_any(run: Run) -> None:
    assert bill(run).money is None
    prices = PricesConfig(cpu_hour=0.5, gib_hour=0.25)
    # eleven CPU-hours, eight stages of an hour with two GiB each
    priced = replace(run, config=run.config.model_copy(update={"prices": prices}))
    assert bill(priced).money == pytest.approx(11 * 0.5 + 16 * 0.25)


@pytest.mark.parametrize(("prices", "money"), [({"gpu_hour": 2}, 8), ({"gib_hour": 0.25}, 18 * 0.25), ({"cpu_hour": 0.5}, 6)])
def test_one_price_is_enough_to_know_what_that_part_cost(run: Run, prices: dict[str, float], money: float) -> None:
    # Twelve CPU-hours, four GPU-hours, nine stages of an hour with two GiB each.
    config = run.config.model_copy(update={"prices": PricesConfig(**prices)})
    held = replace(run, config=config, timings=[*run.timings, timing("round-2/generate", 1, gpus=4)])
    assert bill(held).money == pytest.approx(money)


def test_a_gain_that_took_no_longer_than_the_control_has_no_hours_to_be_divided_by(run: Run) -> None:
    timings = [timing("static/train", 5) if one.stage == "static/train" else one for one in run.timings]
    found = bill(replace(run, timings=timings)).refinement
    assert found is not None
    assert (found.gain, found.extra_hours, found.gain_per_hour) == (pytest.approx(0.3), 0, None)


def test_stages_without_a_record_and_those_begun_twice_are_named(run: Run) -> None:
    again = replace(run.timings[0], usage=replace(run.timings[0].usage or Usage(), attempts=2))
    found = bill(replace(run, timings=[again, Timing("embed", 4.0, True), *run.timings[1:]]))
    assert found.unrecorded == ["embed"]
    assert found.interrupted == ["pool"]
    assert found.total.cpu_s == 11 * HOUR


def test_what_a_judge_was_paid_is_in_the_money_of_its_stage_and_of_all(run: Run) -> None:
    paid = [
        replace(one, usage=replace(one.usage or Usage(), paid=2.5)) if one.stage == "round-2/train" else one
        for one in run.timings
    ]
    judged = replace(run, timings=paid)
    assert bill(judged).money == 2.5
    config = run.config.model_copy(update={"prices": PricesConfig(cpu_hour=0.5)})
    found = bill(replace(judged, config=config))
    assert found.money == pytest.approx(11 * 0.5 + 2.5)
    assert found.refinement is not None
    assert (found.refinement.static.paid, found.refinement.rounds.paid) == (0, 2.5)


def test_the_page_names_what_servers_were_paid(make_run: MakeRun) -> None:
    folder = make_run(rounds=1)
    assert "paid to servers" not in write_report(folder).read_text(encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text())
    [quality] = [stage for stage in manifest["stages"] if stage["stage"] == "quality"]
    quality["facts"]["usage"] = asdict(Usage(wall_s=60, paid=1.25))
    write_json(folder / "manifest.json", manifest)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "1.250 USD of the total was paid to servers that judge or embed" in page
    assert page.count("<td>1.250</td>") == 3  # the stage, all stages, and those that a static selection needs too
