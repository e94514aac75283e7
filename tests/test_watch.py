"""Trackers and metrics: what they are told, and what a missing library says."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from divsel_ray.config import Config, PricesConfig
from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from divsel_ray.pipeline import run_job
from divsel_ray.progress import Silent
from divsel_ray.usage import Usage
from divsel_ray.watch import Metered, Watchers, entropy, round_figures, watched


class Listener:
    def __init__(self) -> None:
        self.stages: dict[str, Mapping[str, float]] = {}
        self.rounds: dict[int, Mapping[str, float]] = {}

    def stage(self, name: str, figures: Mapping[str, float]) -> None:
        self.stages[name] = figures

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        self.rounds[number] = figures

    def close(self) -> None:
        pass


def job(**values: object) -> Config:
    return build_config({"budget": 2, "pool": {"data": "rows.jsonl"}, **values}, "test")


USED = {"usage": asdict(Usage(wall_s=3600, cpu_s=7200))}
STAGES = {
    "pool": {"rows": 9, "files": {"a": 1}, "converged": True, **USED},
    "round-1/train": {"train_loss": 2.0, "held_out_loss": 1.5, **USED},
    "round-1/score": {"mean_gap": 0.5, "held_out_gap": None},
    "round-1/weights": {"weights": [0.5, 0.5], "moved": 0.25},
}


def test_a_rounds_figures_come_as_soon_as_its_weights_are_known() -> None:
    listener = Listener()
    watchers = Watchers([listener], PricesConfig(cpu_hour=0.5))
    for name, facts in list(STAGES.items())[:-1]:
        watchers.stage(name, facts)
    assert listener.rounds == {}
    watchers.stage("round-1/weights", STAGES["round-1/weights"])
    expected = {"train_loss": 2.0, "held_out_loss": 1.5, "mean_gap": 0.5, "weights_moved": 0.25, "weights_entropy": 1.0}
    assert listener.rounds == {1: {**expected, "cpu_hours": 4.0, "gpu_hours": 0.0, "cost": 2.0}}


def test_of_a_stage_only_numbers_are_passed_on() -> None:
    listener = Listener()
    Watchers([listener]).stage("pool", {**STAGES["pool"], "loss": math.nan})
    assert listener.stages["pool"].keys() == {
        "rows",
        "wall_s",
        "cpu_s",
        "gpu_s",
        "gib_s",
        "peak_gib",
        "attempts",
        "nodes",
        "paid",
    }


def test_a_round_of_which_nothing_is_known_has_its_cost() -> None:
    assert round_figures({}, 3, PricesConfig()) == {"cpu_hours": 0.0, "gpu_hours": 0.0, "cost": 0.0}


def test_entropy_is_a_share_of_the_largest() -> None:
    assert entropy([0.25] * 4) == pytest.approx(1)
    assert entropy([1.0, 0.0]) == 0
    assert entropy([1.0]) is None


def test_tensorboard_holds_what_the_tracker_was_told(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with watched(job(watch=["tensorboard"]), tmp_path, Silent()) as watchers:
        for name, facts in STAGES.items():
            watchers.stage(name, facts)
    [file] = (tmp_path / "tensorboard").iterdir()
    found = {}
    for record in records(file.read_bytes()):
        event = Event.FromString(record)
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
    assert found["round/held_out_loss"] == (1, 1.5)
    assert found["stage/pool/rows"] == (0, 9.0)


def records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    found = []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_mlflow_and_wandb_are_told_through_their_own_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []

    def note(name: str):
        return lambda *values, **named: calls.append((name, (*values, named)))

    names = ("start_run", "log_dict", "log_metrics", "end_run")
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**{name: note(name) for name in names}))
    run = SimpleNamespace(summary=SimpleNamespace(update=note("summary")), log=note("log"), finish=note("finish"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **named: (calls.append(("init", named)), run)[1]))
    with watched(job(watch=["mlflow", "wandb"]), tmp_path, Silent()) as watchers:
        watchers.stage("round-2/weights", {"weights": [0.5, 0.5], "moved": 0.1})
    told = [name for name, _ in calls]
    assert told == ["start_run", "log_dict", "init", "log_metrics", "summary", "log_metrics", "log", "finish", "end_run"]
    metrics = dict(calls[::-1])["log_metrics"]
    assert metrics == ({"stage/round-2/weights/moved": 0.1}, {"step": 0})


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


class Deaf(Listener):
    """Its server is gone after the first stage."""

    def stage(self, name: str, figures: Mapping[str, float]) -> None:
        if self.stages:
            raise ConnectionError("no route\nto host")
        super().stage(name, figures)


def test_a_tracker_that_fails_is_told_no_more_and_the_others_go_on() -> None:
    deaf, listener, notes = Deaf(), Listener(), Notes()
    watchers = Watchers([deaf, listener], progress=notes)
    for name, facts in STAGES.items():
        watchers.stage(name, facts)
    assert list(deaf.stages) == ["pool"]
    assert deaf.rounds == {}
    assert list(listener.stages) == list(STAGES)
    assert list(listener.rounds) == [1]
    assert notes.said == ["watch: Deaf failed and is disabled for the rest of this job (ConnectionError: no route to host)"]


def test_a_tracker_that_fails_at_a_round_is_told_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, notes = Listener(), Notes()
    monkeypatch.delattr(Listener, "round")
    watchers = Watchers([listener], progress=notes)
    watchers.stage("round-1/weights", {"moved": 0.5})
    watchers.stage("round-2/weights", {"moved": 0.5})
    assert list(listener.stages) == ["round-1/weights"]
    assert len(notes.said) == 1


def test_trackers_that_cannot_be_opened_or_closed_do_not_end_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes, closed = Notes(), []

    def fail(*_: object, **__: object) -> None:
        closed.append("tried")
        raise OSError("server is gone")

    run = SimpleNamespace(summary=SimpleNamespace(update=lambda values: None), finish=fail)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(start_run=fail))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    with watched(job(watch=["mlflow", "wandb"]), tmp_path, notes) as watchers:
        watchers.stage("pool", {"rows": 1})
        assert notes.said == ["watch: mlflow failed and is disabled for the rest of this job (OSError: server is gone)"]
    assert closed == ["tried", "tried"]
    assert len(notes.said) == 1


def test_what_fails_in_the_job_itself_is_not_taken_for_a_tracker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spoiled"), watched(job(), tmp_path, Silent()):
        raise ValueError("spoiled")


@pytest.mark.parametrize(("tracker", "package"), [("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_missing_library_is_refused_before_anything_starts(
    tracker: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"watch: {tracker} needs the package {package} .*; pip install {package}$"):
        run_job(job(watch=[tracker]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_progress_also_goes_to_ray_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    metered = Metered(Silent())
    for gauge in (metered._done, metered._total, metered._rate):
        monkeypatch.setattr(gauge, "set", lambda value, tags, name=gauge.info["name"]: told.append((name, value, tags)))
    metered.start("embed")
    metered.advance(30, 120, "rows")
    tags = {"stage": "embed", "unit": "rows"}
    assert told[:2] == [("divsel_done", 30, tags), ("divsel_total", 120, tags)]
    assert told[2][1] > 0
