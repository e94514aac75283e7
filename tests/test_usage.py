"""What a stage held: sums, attempts that were cut short, and a real actor on a real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from divsel_ray.config import PricesConfig
from divsel_ray.config.files import build_config
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster
from divsel_ray.stage_maker import StageMaker
from divsel_ray.store import Store, read_json, write_json
from divsel_ray.usage import ATTEMPTS, Meter, Recorder, Usage, paid_to_servers, usage_of


def test_usages_add_up_and_the_peak_is_the_highest() -> None:
    one, other = Usage(1, 2, 3, 4, 5, 1, 1), Usage(10, 20, 30, 40, 2, 1, 3)
    assert one + other == Usage(11, 22, 33, 44, 5, 2, 3)
    assert Usage(paid=1.5) + Usage(paid=2) == Usage(paid=3.5)


def test_money_is_hours_times_prices() -> None:
    used = Usage(wall_s=3600, cpu_s=7200, gpu_s=3600, gib_s=1800)
    assert used.money(PricesConfig(cpu_hour=0.1, gpu_hour=2, gib_hour=0.01)) == pytest.approx(0.2 + 2 + 0.005)
    assert Usage(cpu_s=3600, paid=3).money(PricesConfig(cpu_hour=0.5)) == 3.5


def test_judges_are_paid_by_the_pool_or_by_completions_and_a_second_opinion() -> None:
    assert paid_to_servers({"rows": 3, "cost": 0.5}) == 0.5
    assert paid_to_servers({"mean_gap": 1.0, "rewards": {"rows": 3, "cost": 0.5}, "second": {"cost": 0.25}}) == 0.75
    assert paid_to_servers({"rewards": {"rows": 3}, "second": {}}) == 0
    assert paid_to_servers({}) == 0


def test_a_stage_records_what_its_judge_was_paid(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    config = build_config({"budget": 1, "pool": {"data": str(tmp_path / "rows.jsonl")}}, "test")
    job = StageMaker(config, Store(tmp_path / "run"), Silent(), None)
    stage = job.make("quality", {}, [], lambda folder: {"rows": 3, "cost": 0.5}, str)
    found = usage_of(stage.facts)
    assert found is not None
    assert (found.paid, found.attempts) == (0.5, 1)


def test_facts_without_a_record_have_no_usage() -> None:
    assert usage_of({"rows": 3}) is None
    assert usage_of({"usage": asdict(Usage(1, 2))}) == Usage(1, 2)


def test_a_block_is_timed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with Recorder(None).measure(tmp_path) as meter:
        time.sleep(0.3)
    assert 0.3 <= meter.usage.wall_s < 3
    assert meter.usage.attempts == 1
    assert meter.usage.peak_gib > 0.01
    assert list(tmp_path.iterdir()) == []


def test_attempts_that_failed_or_were_killed_are_added(tmp_path: Path) -> None:
    write_json(tmp_path / ATTEMPTS, asdict(Usage(100, 200, 0, 50, 7, 2)))
    with pytest.raises(ValueError, match="spoiled"), Recorder(None).measure(tmp_path):
        raise ValueError("spoiled")
    assert read_json(tmp_path / ATTEMPTS)["attempts"] == 3
    with Recorder(None).measure(tmp_path) as meter:
        pass
    assert meter.usage.attempts == 4
    assert meter.usage.wall_s >= 100
    assert meter.usage.peak_gib == 7


def test_an_unreadable_record_of_earlier_attempts_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / ATTEMPTS).write_text('{"wall_')
    with Recorder(None).measure(tmp_path) as meter:
        pass
    assert meter.usage.attempts == 1


def test_what_is_held_counts_for_the_time_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divsel_ray.usage.time", SimpleNamespace(monotonic=iter([110.0, 114.0]).__next__))
    meter = Meter(Usage(attempts=1), 100.0)
    meter.add(cpus=2, gpus=1, gib=3)
    meter.add(cpus=4, gpus=0, gib=2)
    assert meter.usage == Usage(wall_s=14, cpu_s=20 + 16, gpu_s=10, gib_s=30 + 8, peak_gib=3, attempts=1)


SHARED = Cluster(cpus=16, gpus=4, node_cpus=8, node_gpus=2, memory_gib=64, nodes=2, local=False)
OWN = Cluster(cpus=4, gpus=0, node_cpus=10, node_gpus=0, memory_gib=8, nodes=1, local=True)


@pytest.mark.parametrize(
    ("cluster", "before", "now", "held"),
    [
        # Five more CPUs and two more GPUs than others held before, and the driver's.
        (SHARED, (2.0, 1.0), (7.0, 3.0), (6.0, 2.0)),
        (SHARED, (2.0, 1.0), (1.0, 0.0), (1.0, 0.0)),
        # A Ray of its own has nobody else, and no more CPUs than the machine.
        (OWN, (2.0, 0.0), (2.0, 0.0), (3.0, 0.0)),
        (OWN, (0.0, 0.0), (9.0, 0.0), (4.0, 0.0)),
    ],
)
def test_what_others_held_before_is_left_out_and_the_driver_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: Cluster,
    before: tuple[float, float],
    now: tuple[float, float],
    held: tuple[float, float],
) -> None:
    monkeypatch.setattr("divsel_ray.usage._handed_out", lambda: before)
    recorder = Recorder(cluster)
    monkeypatch.setattr("divsel_ray.usage._handed_out", lambda: now)
    with recorder.measure(tmp_path) as meter:
        pass
    used = meter.usage
    assert used.wall_s > 0
    assert (used.cpu_s / used.wall_s, used.gpu_s / used.wall_s) == pytest.approx(held)
    assert used.nodes == cluster.nodes


class FakeProcess:
    """A process of this name with so many GiB; with None, one that has just ended."""

    def __init__(self, name: str, gib: float | None) -> None:
        self.info, self.gib = {"name": name}, gib

    def memory_info(self) -> SimpleNamespace:
        if self.gib is None:
            raise psutil.NoSuchProcess(1)
        return SimpleNamespace(rss=self.gib * 2**30)

    def children(self, recursive: bool) -> list[FakeProcess]:
        return [FakeProcess("ray::Own", 8.0)]


@pytest.mark.parametrize(("cluster", "gib"), [(SHARED, 1.0 + 2.0), (OWN, 1.0 + 8.0), (None, 1.0 + 8.0)])
def test_memory_is_that_of_the_job_and_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster | None, gib: float
) -> None:
    others = {"ray::Shard.fit": 2.0, "ray::IDLE": 4.0, "bash": 16.0, "ray::Ended": None}
    there = [FakeProcess(name, gib) for name, gib in others.items()]
    fake = SimpleNamespace(Process=lambda: FakeProcess("python", 1.0), process_iter=lambda names: there, Error=psutil.Error)
    monkeypatch.setattr("divsel_ray.usage.psutil", fake)
    with Recorder(cluster).measure(tmp_path) as meter:
        pass
    assert meter.usage.peak_gib == gib


def test_an_attempt_that_is_killed_has_left_what_it_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divsel_ray.usage.SAVE_S", 0.0)
    with Recorder(None).measure(tmp_path):
        for _ in range(6000):
            if (tmp_path / ATTEMPTS).exists():
                break
            time.sleep(0.01)
        left = read_json(tmp_path / ATTEMPTS)
    assert left["attempts"] == 1
    assert left["wall_s"] > 0


HELD = """
import json, sys, time
from pathlib import Path
import ray
from divsel_ray.resources import connect
from divsel_ray.usage import Recorder

class Holder:
    def __init__(self):
        self.block = bytearray(1 << 31)
    def ready(self):
        return len(self.block)

recorder, folder = Recorder(connect()), Path(sys.argv[1])
with recorder.measure(folder) as before:
    time.sleep(0.5)
actor = ray.remote(Holder).options(num_cpus=2).remote()
ray.get(actor.ready.remote())
with recorder.measure(folder) as during:
    time.sleep(2)
print(json.dumps([before.usage.peak_gib, during.usage.peak_gib, during.usage.cpu_s / during.usage.wall_s]))
"""


def test_an_actor_counts_with_its_cpus_and_its_memory(tmp_path: Path) -> None:
    # On a Ray of its own: in one that others have used, their idle workers come and go.
    done = subprocess.run([sys.executable, "-c", HELD, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, during, cpus = json.loads(done.stdout.splitlines()[-1])
    assert during > before + 1.6
    # The driver counts as one CPU, and together they cannot hold more than the machine has.
    assert cpus > min(os.cpu_count() or 1, 3) * 0.7
