from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import bench_select
import bench_select_rows as bench_rows
from bench_select import Bar, Case, figures, judge, plan_turns, run_turns
from bench_select_rivals import choose_kcenter, choose_lazily, neighbour_similarity, spread
from bench_select_rows import Rows, load_arrays, prepare_arrays, prepare_files, random_ids
from bench_select_runs import Outcome, Turn, draw_from_arrays, draw_from_files

from divsel_ray.config import SelectConfig
from divsel_ray.errors import InputError, JobError
from divsel_ray.select.draw import Demand, draw
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Greedy

JOBS = Path(bench_select.__file__).parent
NONE = np.empty(0, np.int64)


def entry(name: str, budget: int, **changes: Any) -> dict[str, Any]:
    return {"name": name, "budget": budget, "seconds": 1.0, "resident_bytes": 10**9, **changes}


@pytest.mark.slow
def test_smoke_takes_a_turn_of_every_sampler_and_judges_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(JOBS / "bench_select.py"), "--smoke", "--json", str(tmp_path / "figures.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    files, arrays = json.loads((tmp_path / "figures.json").read_text())["cases"]
    assert {turn["name"] for turn in files["turns"]} == set(bench_select.KEYED)
    assert {turn["name"] for turn in arrays["turns"]} >= {*SAMPLERS, "numpy_kcenter", "sklearn_facility"}
    for turn in [*files["turns"], *arrays["turns"]]:
        assert turn["drawn"] == turn["budget"]
        assert turn["seconds"] > 0
        assert turn["resident_bytes"] > turn["bytes_above"] >= 0
    largest = {turn["name"]: turn for turn in arrays["turns"]}
    assert largest["sklearn_facility"]["time_ratio"] == largest["sklearn_facility"]["seconds"] / largest["facility"]["seconds"]
    # What is chosen differs by the rounding of the vectors at most.
    for rival, ours in (("numpy_kcenter", "kcenter"), ("sklearn_facility", "facility")):
        assert largest[rival]["mean_cosine"] == pytest.approx(largest[ours]["mean_cosine"], rel=0.01)
    assert files["bars"] == arrays["bars"] == []


# Rows


def test_files_are_as_the_stages_leave_them_and_are_written_once(tmp_path: Path) -> None:
    rows = prepare_files(2_500, 8, 1_000, tmp_path)
    names = [path.name for path in sorted((rows.folder / "clusters").iterdir())]
    assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    clusters, quality = (pq.read_table(rows.folder / stage) for stage in ("clusters", "quality"))
    types = {field.name: str(field.type) for field in (*clusters.schema, *quality.schema)}
    assert types == {"row_id": "string", "cluster": "int32", "distance": "float", "quality": "double"}
    ids = clusters["row_id"].to_pylist()
    assert ids == sorted(set(ids)) == quality["row_id"].to_pylist()
    assert len(ids) == rows.count == 2_500
    assert all(len(one) == 32 for one in ids)
    assert set(clusters["cluster"].to_pylist()) == set(range(8))
    before = {path: path.stat().st_mtime_ns for path in rows.folder.rglob("*.parquet")}
    (rows.folder / "quality" / names[1]).unlink()
    assert prepare_files(2_500, 8, 1_000, tmp_path) == rows
    written = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert written == {names[1]}
    assert pq.read_table(rows.folder / "quality").equals(quality), "a file made again is the same"


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a larger disk with --work"):
        prepare_files(10**12, 8, 10**11, tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_row_ids_ascend_within_their_part_of_all_ids() -> None:
    ids = random_ids(1_000, np.random.default_rng(0), (0.25, 0.5))
    assert (ids[1:] > ids[:-1]).all()
    assert {chr(one[0]) for one in ids.tolist()} == set("4567")


def test_arrays_hold_the_embeddings_in_their_order_with_clusters_and_distances(tmp_path: Path) -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float16), 5, axis=0)
    np.save(tmp_path / "vectors.npy", vectors)
    np.save(tmp_path / "quality.npy", np.arange(20))
    rows = prepare_arrays((1, 1), 4, tmp_path / "vectors.npy", tmp_path / "quality.npy", tmp_path / "work")
    candidates = load_arrays(rows.folder, 4)
    assert (rows.count, rows.origin) == (20, "vectors.npy")
    assert (candidates.vectors == vectors).all()
    assert candidates.quality.tolist() == list(range(20))
    assert len(set(zip(np.repeat(range(4), 5), candidates.cluster, strict=True))) == 4
    assert candidates.distance == pytest.approx(np.zeros(20), abs=1e-6)
    assert (candidates.row_ids[1:] > candidates.row_ids[:-1]).all()


def test_distances_are_those_to_the_own_centroid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rows, "_ROWS_AT_ONCE", 3)
    vectors = np.array([[0, 0], [0, 2], [9, 0], [9, 4]], np.float16)
    cluster, distance = bench_rows.cluster_rows(vectors, 2, seed=0)
    assert cluster[0] == cluster[1] != cluster[2] == cluster[3]
    assert distance.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("content", [np.zeros(3), np.zeros((20, 1)), np.array(["a"] * 20)])
def test_qualities_that_do_not_fit_the_rows_are_refused(content: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "quality.npy", content)
    with pytest.raises(InputError, match="expected a number for each of 20 rows"):
        bench_rows.load_quality(tmp_path / "quality.npy", 20)


# Turns


@pytest.fixture
def arrays(tmp_path: Path) -> Rows:
    return prepare_arrays((300, 16), 5, None, None, tmp_path)


@pytest.mark.parametrize("name", ["kmq", "kmclosest", "kcenter", "mig"])
def test_a_turn_in_memory_draws_what_the_product_draws(name: str, arrays: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    candidates = load_arrays(arrays.folder, 5)
    expected = draw(candidates, NONE, Demand([9]), SelectConfig(sampler=name), 0).index
    monkeypatch.setattr("bench_select_runs.spread", lambda vectors, index: seen.append(index.tolist()) or (0.5, 0.25))
    monkeypatch.setattr("bench_select_runs.JUDGED", (name,))
    outcome = draw_from_arrays(Turn(name, str(arrays.folder), 300, 5, 9, files=False))
    assert seen == [expected.tolist()]
    assert (outcome.drawn, outcome.likeness, outcome.radius) == (9, 0.5, 0.25)
    assert outcome.seconds > 0
    assert outcome.resident > outcome.above >= 0


def test_memory_above_counts_what_a_draw_takes(arrays: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(candidates: Any, taken: Any, count: int, config: Any, seed: int) -> Any:
        wasted = np.ones(400_000_000, np.uint8) if count > 2 else np.ones(1)
        return type("Picks", (), {"index": np.arange(count), "gain": np.ones(count) * wasted[0]})

    monkeypatch.setitem(SAMPLERS, "wasteful", Greedy("", choose, lambda *_: 0))
    outcome = draw_from_arrays(Turn("wasteful", str(arrays.folder), 300, 5, 9, files=False))
    assert 300e6 < outcome.above < 450e6


def test_a_turn_from_files_reads_and_draws_them(tmp_path: Path) -> None:
    rows = prepare_files(2_000, 8, 1_000, tmp_path)
    outcome = draw_from_files(Turn("kmq", str(rows.folder), 2_000, 8, 70, files=True))
    assert outcome.drawn == 70
    assert outcome.likeness is None
    assert outcome.resident > outcome.above >= 0


def test_rivals_take_a_turn_at_the_largest_budget_only() -> None:
    case = Case(300, 5, (10, 30), ("kcenter", "numpy_kcenter"))
    turns = plan_turns(case, Rows(Path("rows"), 300, 5, "synthetic"))
    assert [(turn.name, turn.budget) for turn in turns] == [("kcenter", 10), ("kcenter", 30), ("numpy_kcenter", 30)]
    assert not any(turn.files for turn in turns)


def test_every_turn_has_a_process_of_its_own_unless_they_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[str]] = []

    def run(turns: list[Turn], threads: int, folder: Path) -> list[Outcome]:
        groups.append([turn.name for turn in turns])
        return [Outcome(1, float(len(groups)), 1.0, 1, 1) for _ in turns]

    monkeypatch.setattr(bench_select, "run_process", run)
    turns = [Turn(name, "", 10, 1, 5, files=False) for name in ("kmq", "top")]
    outcomes = run_turns(turns, 2, 1, together=False)
    assert groups == [["kmq"], ["top"], ["kmq"], ["top"]]
    assert [outcome.seconds for outcome in outcomes["top", 5]] == [2, 4]
    groups.clear()
    run_turns(turns, 1, 1, together=True)
    assert groups == [["kmq", "top"]]


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    turn = Turn("kmq", str(tmp_path / "missing"), 10, 2, 5, files=False)
    with pytest.raises(JobError, match=r"kmq: ended with code 1: .*missing"):
        run_turns([turn], 1, 1, together=False)


# Figures and bars


def test_figures_are_the_best_time_and_the_worst_memory_and_ratios_are_to_the_sampler() -> None:
    outcomes = {
        ("facility", 5): [Outcome(5, 4.0, 1.0, 7, 70, 0.5, 1.0), Outcome(5, 2.0, 1.5, 6, 80, 0.5, 1.0)],
        ("sklearn_facility", 5): [Outcome(5, 6.0, 5.0, 9, 90, 0.5, 1.0)],
        ("numpy_kcenter", 5): [Outcome(5, 6.0, 5.0, 9, 90, 0.5, 1.0)],
    }
    ours, rival, alone = figures(outcomes, rows=100)
    assert ours == {
        "name": "facility",
        "budget": 5,
        "drawn": 5,
        "seconds": 2.0,
        "cpu_seconds": 1.0,
        "rows_per_second": 50.0,
        "bytes_above": 7,
        "resident_bytes": 80,
        "mean_cosine": 0.5,
        "largest_distance": 1.0,
        "time_ratio": None,
    }
    assert rival["time_ratio"] == 3.0
    assert alone["time_ratio"] is None, "its sampler took no turn"


def test_bars_are_met_at_their_limits_and_missed_beyond() -> None:
    at_limit = [entry("kmq", 100_000, seconds=10.0, resident_bytes=2 * 10**9), entry("random", 100_000, seconds=99.0)]
    beyond = [entry("kmq", 100_000, seconds=10.1, resident_bytes=2 * 10**9 + 1)]
    assert [bar.met for bar in judge("10m", at_limit)] == [True, True]
    assert [bar.met for bar in judge("10m", beyond)] == [False, False]
    slow = [entry("facility", 500, seconds=99.0), entry("facility", 5_000, seconds=61.0)]
    assert list(judge("55k", slow)) == [Bar("55k", "facility, 5,000 rows: seconds", 61.0, 60.0, met=False)]
    assert [bar.met for bar in judge("55k", [entry("facility", 5_000, seconds=60.0)])] == [True]


# Rivals


def test_the_rival_of_facility_chooses_what_plain_greedy_chooses() -> None:
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(120, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity, cover, plain = neighbour_similarity(vectors).toarray(), np.zeros(120), []
    for _ in range(12):
        gains = np.maximum(similarity - cover, 0).sum(axis=1)
        plain.append(int(gains.argmax()))
        cover = np.maximum(cover, similarity[plain[-1]])
    assert choose_lazily(vectors, 12).tolist() == plain


def test_the_rival_of_kcenter_goes_to_the_farthest_row() -> None:
    angles = np.deg2rad([0, 10, 20, 90, 200])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # The mean lies at 31 degrees; from 20 the farthest is 200, then 90, whose nearest is 70 away, then 0.
    assert choose_kcenter(vectors, 4).tolist() == [2, 4, 3, 0]


def test_spread_is_the_mean_cosine_and_the_largest_distance_to_the_nearest_chosen() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float16)
    likeness, radius = spread(vectors, np.array([0, 1]))
    assert likeness == pytest.approx((1 + 1 + 0.8 + 0) / 4, abs=1e-3)
    assert radius == pytest.approx(np.sqrt(2))


# Command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cases", "56k"], "--cases 56k: expected some of 10m,55k"),
        (["--samplers", "kmqq"], "--samplers kmqq: expected some of kmq,"),
        (["--cases", "10m", "--samplers", "facility"], "none of them belongs to these --cases"),
        (["--repeat", "0"], "expected integers of at least 1"),
        (["--cases", "55k", "--embeddings", "missing.npy"], "missing.npy: "),
        (["--smoke", "--cases", "10m", "--budgets", "30000"], "the case 10m has 20,000 rows"),
    ],
)
def test_wrong_input_ends_with_one_line_and_code_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_select.main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.splitlines()[-1].startswith("bench_select: ")
