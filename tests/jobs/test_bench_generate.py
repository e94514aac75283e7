from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import bench_generate
from bench_generate import Outcome, Turn, figures, in_turn, main, sharegpt_rows, write_prompts

from divsel_ray.errors import InputError


def test_the_best_turn_counts_and_ratios_are_over_plain_vllm() -> None:
    outcomes = {"plain": [Outcome(5, 4, 100), Outcome(5, 2, 100)], "fleet": [Outcome(9, 2, 98), Outcome(9, 3, 98)]}
    plain, fleet = figures(outcomes)
    assert (plain["tokens_per_second"], plain["ratio"], plain["seconds"]) == (50, 1.0, 2)
    assert (fleet["tokens_per_second"], fleet["ratio"]) == (49, 0.98)
    assert figures({"fleet": outcomes["fleet"]})[0]["ratio"] is None


def test_prompts_are_as_the_draw_leaves_them(tmp_path: Path) -> None:
    [row] = pq.read_table(write_prompts([("hi", "hello")], tmp_path / "prompts.parquet")).to_pylist()
    assert row["row_id"] == "0" * 32
    assert row["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_all_prompts_are_one_shard_however_many_they_are(tmp_path: Path) -> None:
    prompts = write_prompts([("hi", "hello")] * 300, tmp_path / "prompts.parquet")
    assert Turn("fleet", "model", str(prompts), str(tmp_path), 8, 16, 1).config.shard_size == 300


def test_every_contender_is_first_in_some_turn() -> None:
    turns = [in_turn(["plain", "fleet", "fleet-lora"], turn) for turn in range(4)]
    assert [turn[0] for turn in turns] == ["plain", "fleet", "fleet-lora", "plain"]
    assert turns[1] == ["fleet", "fleet-lora", "plain"]


def test_prompts_are_first_exchanges_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
        {"other": 1},
        {"conversations": [{"from": "human", "value": "d"}, {"from": "gpt", "value": "e"}]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(bench_generate, "packaged_data", lambda reference: [file])
    assert sharegpt_rows("package:x", 2) == [("a", "b"), ("d", "e")]
    with pytest.raises(InputError, match="--prompts 3: package:x has 2 conversations"):
        sharegpt_rows("package:x", 3)


@pytest.mark.parametrize("wrong", [["--contenders", "plain,other"], ["--prompts", "1"], ["--repeat", "0"]])
def test_wrong_options_are_one_line_and_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", *wrong]) == 2
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("bench_generate: "))
    assert wrong[0] in said


@pytest.mark.slow
def test_smoke_takes_a_turn_of_every_contender_and_judges_nothing(tmp_path: Path) -> None:
    script = Path(bench_generate.__file__)
    command = [sys.executable, str(script), "--smoke", "--threads", "1", "--json", str(tmp_path / "figures.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    entries = {entry["name"]: entry for entry in report["contenders"]}
    assert set(entries) == set(bench_generate.CONTENDERS)
    assert report["bar"]["met"] is None
    # Greedy, in float32: every contender writes the same.
    assert len({entry["tokens"] for entry in entries.values()}) == 1
    assert all(entry["ratio"] == entry["tokens_per_second"] / entries["plain"]["tokens_per_second"] for entry in entries.values())
