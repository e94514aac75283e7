from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import bench_kmeans
from bench_kmeans import Run, figures, judge
from bench_kmeans_contenders import OURS, RIVALS, Outcome

JOBS = Path(bench_kmeans.__file__).parent
TIMES = ("seconds_per_iteration", "loop_seconds", "fit_seconds", "inertia", "resident_bytes")


def outcome(*trace: tuple[float, float], seconds: float, first: float | None = 1.0) -> Outcome:
    return Outcome(list(trace), 4, first, seconds, idle=(0.0, 1.0), fitting=(1.0, 1.0 + 2 * seconds))


def figures_of(**changes: Any) -> dict[str, Any]:
    figure = {"seconds_per_iteration": 1.0, "seconds_to_target": 4.0, "loop_seconds": 10.0, "memory_above_idle_bytes": 0}
    return {**figure, "resident_bytes": 2**30, **changes}


@pytest.mark.slow
def test_smoke_runs_every_contender_and_ours_clusters_as_well_as_scikit_learn(tmp_path: Path) -> None:
    command = [sys.executable, str(JOBS / "bench_kmeans.py"), "--smoke", "--json", str(tmp_path / "figures.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    (case,) = json.loads((tmp_path / "figures.json").read_text())["cases"]
    contenders = case["contenders"]
    assert set(contenders) == {*OURS, *RIVALS}
    for name, row in contenders.items():
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in TIMES), (name, row)
        assert row["memory_above_idle_bytes"] >= 0
        assert row["iterations"] >= 1, name
    best = contenders["sklearn_lloyd"]["inertia"]
    assert contenders["ours"]["inertia"] == pytest.approx(best, rel=0.01)
    assert contenders["torch"]["inertia"] == pytest.approx(best, rel=1e-5)
    assert contenders["ours_progressive"]["inertia"] <= 1.02 * best
    assert contenders["ours"]["inertia"] == contenders["ours_one_shard"]["inertia"] == contenders["ours_streaming"]["inertia"]
    assert 0 < contenders["ours"]["seconds_to_target"] <= contenders["ours"]["loop_seconds"]
    assert {bar["what"] for bar in case["bars"]} >= {"an iteration / faiss's", "streaming: GiB resident"}


def test_the_target_is_reached_at_the_end_of_the_first_iteration_that_found_it() -> None:
    run = Run(outcome((90.0, 1.0), (50.0, 2.5), (40.0, 4.0), seconds=4.0), inertia=39.0, above_idle=0, resident=1)
    assert run.reached(50.0) == 2.5
    assert run.reached(39.5) == 4.0, "the final centroids count at the end of the loop"
    assert run.reached(38.9) is None


def test_figures_are_the_best_times_and_the_worst_memory_of_the_turns() -> None:
    slow = Run(outcome((9.0, 3.0), seconds=8.0, first=None), inertia=5.0, above_idle=7, resident=70)
    fast = Run(outcome((9.0, 2.0), seconds=6.0, first=0.5), inertia=5.0, above_idle=6, resident=80)
    assert figures([slow, fast], target=5.0) == {
        "iterations": 4,
        "seconds_per_iteration": 1.5,
        "first_iteration_seconds": 0.5,
        "loop_seconds": 6.0,
        "fit_seconds": 12.0,
        "seconds_to_target": 6.0,
        "inertia": 5.0,
        "memory_above_idle_bytes": 7,
        "resident_bytes": 80,
    }
    assert figures([slow], target=4.0)["seconds_to_target"] is None
    assert figures([slow], target=None)["seconds_to_target"] is None


def test_bars_are_met_at_their_limits_and_missed_beyond() -> None:
    rows_bytes = 10**9
    at_limit = {
        "faiss": figures_of(),
        "ours": figures_of(memory_above_idle_bytes=1_600_000_000),
        "ours_one_shard": figures_of(seconds_per_iteration=1.7),
        "ours_streaming": figures_of(resident_bytes=6 * 2**30),
    }
    assert [bar.met for bar in judge("200k", 1024, at_limit, rows_bytes)] == [True] * 5
    beyond = {
        "faiss": figures_of(),
        "ours": figures_of(seconds_per_iteration=1.01, seconds_to_target=4.1, memory_above_idle_bytes=1_600_000_001),
        "ours_one_shard": figures_of(seconds_per_iteration=1.6),
        "ours_streaming": figures_of(resident_bytes=6 * 2**30 + 1),
    }
    assert [bar.met for bar in judge("200k", 1024, beyond, rows_bytes)] == [False] * 5


def test_a_target_never_reached_misses_its_bar() -> None:
    table = {"faiss": figures_of(), "ours": figures_of(seconds_to_target=None)}
    (bar,) = [bar for bar in judge("55k", 256, table, 10**6) if "target" in bar.what]
    assert bar.measured is None
    assert not bar.met


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cases", "56k"], "--cases 56k: expected some of 55k,200k,1m,10m"),
        (["--contenders", "faisss"], "--contenders faisss: expected some of ours,"),
        (["--cases", "10m", "--contenders", "faiss"], "none of them belongs to these --cases"),
        (["--cases", "55k", "--k", "0"], "expected integers of at least 1"),
        (["--cases", "55k", "--embeddings", "missing.npy"], "missing.npy: "),
    ],
)
def test_wrong_input_ends_with_one_line_and_code_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_kmeans.main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.splitlines()[-1].startswith("bench_kmeans: ")


def test_the_two_turns_of_scaling_are_at_one_k_only() -> None:
    case = bench_kmeans.CASES["200k"]
    assert "ours_one_shard" in case.names(1024)
    assert "ours_one_shard" not in case.names(256)


def test_a_window_without_a_sample_takes_the_last_one_before_its_end() -> None:
    samples = [bench_kmeans.Sample(moment, size) for moment, size in ((1.0, 5), (2.0, 9), (3.0, 7), (6.0, 50))]
    assert bench_kmeans._highest(samples, (0.5, 3.5)) == 9
    assert bench_kmeans._highest(samples, (4.0, 5.0)) == 7
