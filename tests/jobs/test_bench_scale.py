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

import bench_scale
import bench_scale_rows
from bench_kmeans_contenders import Sample
from bench_scale import JUDGED_ROWS, Bar, Size, counts, job_config, judge, main, read_models, run_size
from bench_scale_model import GIB, Hardware, Line, StageModel, exponent, fit_line, fit_stages, plan_rows
from bench_scale_rows import Rows, disk_bytes, texts, write_rows
from bench_scale_runs import STAGES, Figure, drop_unmeasured, failure, figure_of, measure, within

from divsel_ray.data.conversation import canonicalise, row_id
from divsel_ray.data.formats import from_prompt_completion
from divsel_ray.errors import InputError, JobError
from divsel_ray.store import Store
from tests.json_lines import read_lines

JOBS = Path(bench_scale.__file__).parent


def size(rows: int, **changes: int) -> Size:
    return Size(rows, {"pool": Figure(1.0, 0.5, changes.get("memory", 0), 0, changes.get("driver", 0))}, 0, 0, 0.1)


def options(*arguments: str) -> Any:
    return bench_scale.parse(["--rows", "300", "--dimension", "8", "--k", "4", *arguments])


@pytest.mark.slow
def test_smoke_measures_every_stage_of_both_sizes_and_judges_nothing(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(JOBS / "bench_scale.py"), "--smoke", "--json", str(figures), "--work", str(tmp_path / "work")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(figures.read_text())
    assert [measured["rows"] for measured in report["sizes"]] == [1_000, 4_000]
    for measured in report["sizes"]:
        assert set(measured["stages"]) == set(STAGES)
        for name, figure in measured["stages"].items():
            assert 0 <= figure["parallel_seconds"] <= figure["seconds"], name
            assert 0 < figure["driver"] < 2 * GIB
        assert measured["stages"]["cluster"]["memory"] > 16 << 20, "k-means has an actor"
        assert measured["disk"] < disk_bytes(measured["rows"], 32) + (1 << 20)
        assert measured["stages"]["round-1/draw"]["largest"] > 16 << 20, "the draw is a task"
    assert {model["points"] for model in report["model"].values()} == {2}
    assert report["bars"] == []
    assert {path.suffix for path in (tmp_path / "work").iterdir()} == {".json"}, "rows and runs are removed"
    planned = subprocess.run(
        [*command[:2], "--from", str(figures), "--plan", "100m"], capture_output=True, text=True, timeout=600, check=False
    )
    assert planned.returncode == 0, planned.stderr
    assert "100,000,000 rows on 1 nodes" in planned.stdout
    assert "Extrapolated: 25,000 times" in planned.stdout


# Rows


def test_every_text_has_a_vector_and_vectors_ascend_by_row_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_scale_rows, "PART_ROWS", 100)
    rows = write_rows(tmp_path, 250, 8)
    lines = [line for file in sorted(rows.texts.iterdir()) for line in read_lines(file)]
    tables = [pq.read_table(file) for file in sorted(rows.vectors.iterdir())]
    ids = [one for table in tables for one in table["row_id"].to_pylist()]
    assert len(lines) == 250
    assert len({line["prompt"] for line in lines}) == 250
    assert ids == sorted(row_id(canonicalise(from_prompt_completion(line))) for line in lines)
    assert len(tables) == 3
    vectors = np.concatenate([np.array(table["embedding"].to_pylist()) for table in tables])
    assert vectors.shape == (250, 8)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=2e-3)
    assert str(tables[0].schema.field("embedding").type.value_type) == "halffloat"


def test_parts_that_are_there_are_left_alone_and_a_missing_one_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_scale_rows, "PART_ROWS", 100)
    rows = write_rows(tmp_path, 250, 8)
    files = [*rows.texts.iterdir(), *rows.vectors.iterdir()]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    gone = rows.vectors / "part-00001.parquet"
    gone.unlink()
    write_rows(tmp_path, 250, 8)
    assert gone.read_bytes() == before[gone][0]
    assert [file for file in files if file.stat().st_mtime_ns != before[file][1]] == [gone]


def test_texts_of_another_part_are_others_and_qualities_vary() -> None:
    first, second = list(texts(0, 50)), list(texts(1, 50))
    assert not {str(row["prompt"]) for row in first} & {str(row["prompt"]) for row in second}
    assert np.std([row["score"] for row in first]) == pytest.approx(1, abs=0.4)


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "1000b", "--work", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("bench_scale: ")
    assert "name a larger disk with --work" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# What a stage took


def test_memory_is_the_worst_of_the_window_above_idle_and_one_task_is_never_parallel() -> None:
    samples = [Sample(0.5, 100, 99), Sample(1.5, 300, 80), Sample(2.5, 900, 70), Sample(3.5, 500, 99)]
    line = {"stage": "embed", "began": 1.0, "ended": 3.0, "driver": 7}
    assert figure_of(line, samples, 200, 1.25) == Figure(2.0, 1.25, 700, 80, 7)
    assert figure_of({**line, "stage": "round-1/draw"}, samples, 1_000, 1.25) == Figure(2.0, 0.0, 0, 80, 7)


def test_a_window_without_a_sample_has_the_one_before_its_end() -> None:
    samples = [Sample(1.0, 10), Sample(2.0, 20), Sample(9.0, 90)]
    assert within(samples, 3.0, 4.0) == samples[1:2]
    assert within(samples, 0.1, 0.2) == samples[:1]
    assert within(samples, 0.5, 2.0) == samples[:2]


def test_only_measured_stages_are_kept_for_the_next_attempt(tmp_path: Path) -> None:
    for stage in ("pool/key", "embed/key", "round-1/draw/key"):
        (tmp_path / stage).mkdir(parents=True)
    figure = Figure(1.0, 1.0, 1, 1, 1)
    drop_unmeasured(tmp_path, {"pool": figure, "round-1/draw": figure})
    assert sorted(path.name for path in tmp_path.glob("*/")) == ["pool", "round-1"]
    with Store(tmp_path).lock(), pytest.raises(JobError, match="is working on this run folder"):
        drop_unmeasured(tmp_path, {})
    assert (tmp_path / "pool").exists()


def test_a_driver_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    config = job_config(Rows(tmp_path, tmp_path, 100, 8), 4, 0.1).model_copy(update={"seed": -1})
    with pytest.raises(JobError, match=r"ended with code 1: .*pydantic"):
        measure(config, tmp_path / "size", lambda name, figure: None)


def test_wrong_input_of_the_job_is_told_from_its_failure() -> None:
    wrong = failure(1, "Traceback\n  ...\ndivsel_ray.errors.InputError: pool.data: nothing there\n")
    assert isinstance(wrong, InputError)
    assert str(wrong).endswith("ended with code 1: divsel_ray.errors.InputError: pool.data: nothing there")
    assert isinstance(failure(1, "divsel_ray.errors.JobError: lost\n"), JobError)
    assert isinstance(failure(-9, ""), JobError)


def test_a_size_is_measured_once_in_a_folder_and_nothing_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(config: Any, folder: Path, told: Any) -> Any:
        asked.append(config)
        return {"pool": Figure(1.0, 0.5, 3, 2, 4)}, 5

    monkeypatch.setattr(bench_scale, "measure", measured)
    first = run_size(300, options(), tmp_path)
    assert first.rows == 300
    assert first.idle == 5
    assert first.disk > 300 * 16
    assert run_size(300, options(), tmp_path) == first
    assert len(asked) == 1
    assert len(list(tmp_path.iterdir())) == 1
    run_size(300, options("--k", "5"), tmp_path)
    assert [config.cluster.k for config in asked] == [4, 5], "other settings are another size"
    assert asked[0].budget == 3


# The model


def test_a_line_is_found_again_and_never_falls() -> None:
    line = fit_line([10, 100, 1000], [3 + 0.5 * rows for rows in (10, 100, 1000)])
    assert (line.a, line.b) == pytest.approx((3, 0.5))
    falling = fit_line([1, 2], [4.0, 2.0])
    assert (falling.a, falling.b) == pytest.approx((3.0, 0.0))
    assert fit_line([10], [5.0]) == Line(0.0, 0.5)


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent([10, 100, 1000], [5 * rows**1.5 for rows in (10, 100, 1000)]) == pytest.approx(1.5)
    assert exponent([10, 100], [1.0, 0.0]) is None
    assert exponent([10], [1.0]) is None


def test_every_stage_has_its_own_growth_and_the_number_of_points() -> None:
    figures = {
        rows: {
            "report": Figure(1.0, 0.0, 0, 0, 3 * rows * GIB),
            "diversity": Figure(rows**2, 0.0, rows * GIB, 2 * rows * GIB, 0),
            "pool": Figure(1e-3 * rows, 5e-4 * rows, GIB, 0, GIB // 2),
        }
        for rows in (10, 100, 1000)
    }
    models = fit_stages(figures)
    assert list(models) == ["pool", "diversity", "report"]
    assert models["pool"].points == 3
    assert models["pool"].exponent == pytest.approx(1)
    assert models["pool"].gib.at(10**9) == pytest.approx(1)
    assert (models["diversity"].exponent, models["diversity"].last_exponent) == pytest.approx((2, 2))
    assert models["diversity"].gib.b == pytest.approx(1)
    alone = [model.alone_gib.b if model.alone_gib else None for model in models.values()]
    assert alone == [None, pytest.approx(2), pytest.approx(3)]


def test_a_plan_shares_what_all_cpus_do_and_nothing_else() -> None:
    zero = Line(0.0, 0.0)
    shared = StageModel(2, 1.0, 1.0, Line(0.0, 0.72), Line(0.0, 0.36), Line(1.0, 0.5), Line(0.25, 0.0), None)
    alone = StageModel(2, 1.0, 1.0, Line(0.0, 0.036), zero, Line(0.5, 9.0), zero, Line(7.0, 0.2))
    measured = {"cpus": 2.0, "idle_gib": 3.0, "disk_bytes_per_row": float(GIB), "rows": 20}
    plan = plan_rows(10_000, Hardware(5, 4, 0.5), {"cluster": shared, "diversity": alone}, measured)
    # 3,600 s alone, and 3,600 s of two CPUs shared by twenty.
    assert plan.stages["cluster"].hours == pytest.approx(1.1)
    assert plan.stages["diversity"].hours == pytest.approx(0.1)
    assert plan.hours == pytest.approx(1.2)
    assert plan.money == pytest.approx(1.2 * 20 * 0.5)
    # Twice the CPUs have twice the constant part; a fifth of the rows is on a node.
    assert plan.stages["cluster"].node_gib == pytest.approx(2 + 0.5 * 2_000)
    assert plan.stages["diversity"].node_gib == pytest.approx(2 * 0.5 + 2_000), "one process has all rows"
    assert (plan.node_gib, plan.driver_gib, plan.disk_gib) == pytest.approx((2_004, 0.25, 10_000))
    assert (plan.shards, plan.times_measured) == (19, 500)


def test_a_plan_of_an_earlier_run_is_printed_and_called_extrapolated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench_scale.figures([size(1_000, memory=GIB, driver=GIB // 2), size(10_000, memory=2 * GIB)], judged=True)
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(report))
    assert read_models(json.loads(path.read_text())) == read_models(report)
    assert main(["--from", str(path), "--plan", "100m", "--nodes", "4", "--cpus", "8", "--cpu-hour", "0.05"]) == 0
    said = capsys.readouterr().out
    assert "100,000,000 rows on 4 nodes of 8 CPUs" in said
    assert "cluster.n_shards=31" in said
    assert "Extrapolated: 10,000 times the rows" in said


# Bars and command line


def test_bars_are_met_at_their_limits_and_missed_beyond_and_hold_for_a_million_rows_only() -> None:
    assert list(judge([size(JUDGED_ROWS // 10, memory=99 * GIB)])) == []
    memory, driver = judge([size(JUDGED_ROWS, memory=6 * GIB, driver=GIB - 1)])
    assert memory == Bar(JUDGED_ROWS, "GiB above idle, all processes", 6.0, 6.0, met=True)
    assert driver.met
    assert not any(bar.met for bar in judge([size(JUDGED_ROWS, memory=6 * GIB + 1, driver=GIB)]))


def test_numbers_of_rows_have_units_and_ascend() -> None:
    assert counts("1m,10K,300") == [300, 10_000, 1_000_000]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k", "0"], "expected integers of at least 1"),
        (["--k", "20k"], "invalid int value"),
        (["--rows", "10k,0"], "expected numbers of at least 1 such as 10k,100k,1m"),
        (["--rows", "500"], "--k 1024: exceeds the 500 rows"),
        (["--budget-share", "0"], "--budget-share: expected a share above 0"),
        (["--from", "missing.json"], "name the rows to plan for with --plan"),
        (["--from", "missing.json", "--plan", "1m"], "--from missing.json: not a file that --json wrote"),
    ],
)
def test_wrong_input_ends_with_one_line_and_code_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
