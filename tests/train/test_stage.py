"""Fine-tuning under Ray Train: several workers are as one, and whoever is killed, the result is the same."""

import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from divsel_ray.config import TrainConfig, Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Silent
from divsel_ray.train import stage
from divsel_ray.train.finetune import Origin
from divsel_ray.train.stage import Round, train_round, trained_folder
from tests.json_lines import read_lines
from tests.models.tiny import save_language_model
from tests.train.rows import NO_SYSTEM, conversations, with_system, write_rows

ROWS = conversations(19)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A round, and settings that its training takes."""
    folder = tmp_path_factory.mktemp("job")
    round_ = Round(write_rows(folder / "rows.parquet", ROWS), write_rows(folder / "held_out.parquet", ROWS[:4]), seed=3)
    return round_, {"model": str(save_language_model(folder / "lm")), "epochs": 2, "learning_rate": 0.01, "max_tokens": 64}


def weights(folder: Path, config: TrainConfig) -> dict[str, torch.Tensor]:
    [file] = trained_folder(folder, config).glob("*.safetensors")
    return load_file(file)


def test_a_diverging_loss_of_a_model_named_by_a_relative_path_is_not_tried_again(job, cluster, tmp_path, monkeypatch):
    model = Path(job[1]["model"])
    monkeypatch.chdir(model.parent)
    config = TrainConfig(**{**job[1], "model": model.name, "max_loss": 0.5})
    with pytest.raises(JobError, match=r"^refine.train: training diverged at step 1: loss .*lower refine.train.learning_rate$"):
        train_round(job[0], config, tmp_path / "round", cluster, Silent())
    assert not (tmp_path / "round" / "training").exists()
    assert (tmp_path / "round" / ".state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("error", [InputError("no such folder"), JobError("diverged")])
def test_what_another_attempt_would_repeat_is_returned_by_the_worker_and_raised_by_the_driver(error, monkeypatch, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr(stage, "_train", fail)
    answer = stage._train_worker({"round": None, "config": None, "state": "", "output": ""})

    class Trainer:
        def fit(self):
            return SimpleNamespace(return_value=answer)

    with pytest.raises(type(error), match=str(error)):
        stage._fit(Trainer(), tmp_path / "losses.jsonl", Silent())


def test_a_snapshot_that_was_cut_off_starts_the_training_over(tmp_path):
    snapshot = tmp_path / "ray" / "key" / "checkpoint_manager_snapshot.json"
    snapshot.parent.mkdir(parents=True)
    for text, stays in (("{}", True), ('{"checkpoint_res', False)):
        snapshot.write_text(text)
        stage._drop_torn_snapshot(tmp_path, "key")
        assert (tmp_path / "ray").exists() == stays


def test_workers_that_find_no_place_end_in_time_with_the_numbers(job, cluster, tmp_path):
    config = TrainConfig(**job[1], workers=Workers(count=2, cpus=500))
    began = time.monotonic()
    with pytest.raises(JobError, match=r"refine\.train: 2 of 2 workers \(500 CPUs .* missing: up to \d+ CPUs"):
        train_round(job[0], config, tmp_path / "round", replace(cluster, placement_timeout_s=1), Silent())
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp": True}, "fsdp: shards the model over several workers, but it may have to run on 1; set workers.count"),
        ({"fsdp": True, "min_workers": 1, "workers": {"count": 2}}, "it may have to run on 1;"),
        ({"min_workers": 3, "workers": {"count": 2}}, "min_workers 3: exceeds workers.count 2"),
    ],
)
def test_workers_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(model="tiny", **settings)


@pytest.mark.slow
def test_two_workers_train_what_one_with_batches_of_both_trains(job, cluster, tmp_path):
    pair = {"batch_size": 2, "workers": Workers(count=2)}
    ways = {
        "one": {"batch_size": 4},
        "two": pair,
        "two again": pair,
        "sharded": {**pair, "fsdp": True, "checkpoint_steps": 4},
        "elastic": {**pair, "min_workers": 1},
    }
    facts, trained = {}, {}
    for name, way in ways.items():
        config = TrainConfig(**job[1], **way)
        facts[name] = train_round(job[0], config, tmp_path / name, cluster, Silent())
        trained[name] = weights(tmp_path / name, config)
        assert not (tmp_path / name / ".state").exists()
        torch.testing.assert_close(trained[name], trained["one"], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(trained["two"][name], trained["two again"][name]) for name in trained["two"])
    assert {name: fact["steps"] for name, fact in facts.items()} == dict.fromkeys(ways, 10)
    assert {name: fact["tokens"] for name, fact in facts.items()} == dict.fromkeys(ways, facts["one"]["tokens"])
    assert {name: fact["elastic"] for name, fact in facts.items()} == {**dict.fromkeys(ways, False), "elastic": True}
    assert facts["one"]["world_size"] == 1
    assert facts["two"]["world_size"] == 2


@pytest.mark.slow
def test_a_worker_all_of_whose_rows_are_refused_takes_its_steps_and_the_user_is_told(job, cluster, tmp_path):
    said: list[str] = []
    progress = Silent()
    progress.note = said.append  # type: ignore[method-assign]
    rows = [with_system(row) if number < 9 else row for number, row in enumerate(ROWS)]
    held_out = write_rows(tmp_path / "held_out.parquet", ROWS[:4])
    round_ = Round(write_rows(tmp_path / "rows.parquet", rows), held_out, 3, Origin(chat_template=NO_SYSTEM))
    config = TrainConfig(**job[1], batch_size=2, workers=Workers(count=2))
    facts = train_round(round_, config, tmp_path / "round", cluster, progress)
    assert (facts["steps"], facts["refused"]) == (10, 9)
    assert facts["held_out_loss"] < facts["held_out_loss_base"]
    listed = tmp_path / "round" / "training" / "refused.jsonl"
    because = "rows are not trained on because the chat template refuses them"
    assert said == [f"refine.train: 9 {because}; see {listed} for the reasons"]
    assert len(listed.read_text().splitlines()) == 9


@pytest.mark.slow
def test_a_sharded_full_training_leaves_the_whole_model(job, cluster, tmp_path):
    one = TrainConfig(**job[1], method="full", batch_size=4)
    two = TrainConfig(**job[1], method="full", batch_size=2, fsdp=True, workers=Workers(count=2))
    for name, config in (("one", one), ("two", two)):
        train_round(job[0], config, tmp_path / name, cluster, Silent())
    torch.testing.assert_close(weights(tmp_path / "two", two), weights(tmp_path / "one", one), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_continued_round_trains_on_its_new_rows_only(job, cluster, tmp_path):
    new = pa.table({"row_id": [row.row_id for row in ROWS], "new": [number < 4 for number in range(19)]})
    pq.write_table(new, tmp_path / "selected.parquet")
    config = TrainConfig(**{**job[1], "mode": "continue", "epochs": 1})
    first = train_round(job[0], config, tmp_path / "1", cluster, Silent())
    origin = Origin(first["held_out_loss_base"], trained_folder(tmp_path / "1", config))
    round_ = replace(job[0], origin=origin, only_new=tmp_path / "selected.parquet")
    second = train_round(round_, config, tmp_path / "2", cluster, Silent())
    assert (first["steps"], second["steps"]) == (5, 1)
    assert second["held_out_loss_base"] == first["held_out_loss_base"]
    assert second["held_out_loss"] not in (first["held_out_loss"], first["held_out_loss_base"])


@pytest.fixture(scope="module")
def long_config(job):
    return TrainConfig(**{**job[1], "epochs": 30, "checkpoint_steps": 5})


@pytest.fixture(scope="module")
def uninterrupted(job, long_config, cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "round"
    return train_round(job[0], long_config, folder, cluster, Silent()), weights(folder, long_config)


def command_of(process):
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class KillsAt(Silent):
    """Kills what trains as soon as it has come to a step."""

    def __init__(self, step: int) -> None:
        self.step, self.killed = step, False

    def advance(self, done: int, total: int, unit: str) -> None:
        if done >= self.step and not self.killed:
            workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in command_of(p)]
            assert len(workers) == 1
            workers[0].kill()
            self.killed = True


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_checkpoint(job, long_config, uninterrupted, cluster, tmp_path):
    killer = KillsAt(17)
    facts = train_round(job[0], long_config, tmp_path / "round", cluster, killer)
    assert killer.killed
    assert 0 < facts["resumed_from"] < 150
    assert facts == {**uninterrupted[0], "resumed_from": facts["resumed_from"]}
    trained = weights(tmp_path / "round", long_config)
    assert all(torch.equal(trained[name], weight) for name, weight in uninterrupted[1].items())


DRIVER = """
import pickle, sys
from pathlib import Path
import divsel_ray
from divsel_ray.progress import Silent
from divsel_ray.resources import connect
from divsel_ray.train.stage import train_round
round_, config = pickle.load(sys.stdin.buffer)
train_round(round_, config, Path(sys.argv[1]), connect(), Silent())
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_from_its_checkpoint(job, long_config, uninterrupted, cluster, tmp_path):
    folder = tmp_path / "round"
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-c", DRIVER, str(folder)]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    pickle.dump((job[0], long_config), driver.stdin)
    driver.stdin.close()
    end = time.monotonic() + 200
    while not any(file.read_text().count("\n") >= 17 for file in folder.glob("training.tmp-*/losses.jsonl")):
        assert driver.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    facts = train_round(job[0], long_config, folder, cluster, Silent())
    assert facts == {**uninterrupted[0], "resumed_from": facts["resumed_from"]}
    assert facts["resumed_from"] >= 5
    trained = weights(folder, long_config)
    assert all(torch.equal(trained[name], weight) for name, weight in uninterrupted[1].items())
    lines = read_lines(folder / "training" / "losses.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 151))
