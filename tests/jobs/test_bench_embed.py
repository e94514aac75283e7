from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import bench_embed
import bench_embed_rows
from bench_embed import Contender, best_batch, figures, judge, main
from bench_embed_rows import instruction_texts

from divsel_ray.errors import InputError


def contender(name: str, seconds: list[float], vectors: list[list[float]]) -> Contender:
    return Contender(name, lambda texts: np.zeros((len(texts), 2)), None, seconds, np.array(vectors))


def test_the_best_turn_counts_and_the_bar_is_over_both_ways_to_call_sentence_transformers() -> None:
    same, near, far = [[1.0, 0.0]], [[0.9999, 0.0141]], [[0.99, 0.141]]
    entries = figures(
        [
            contender("st", [4.0, 5.0], same),
            contender("st-best", [2.5], same),
            contender("encoder", [3.0, 2.0], near),
            contender("encoder-bf16", [1.0], far),
        ],
        rows=100,
    )
    exact = entries[2]
    assert (exact["rows_per_second"], exact["over_st"], exact["over_st_best"]) == (50, 2.0, 1.25)
    assert exact["least_cosine"] == pytest.approx(0.9999)
    # The faster one does not agree.
    assert judge(entries) == {"limit": 1.2, "by": "encoder", "measured": 1.25, "met": True}
    assert judge(figures([contender("encoder", [1.0], same)], rows=1))["met"] is None


def test_the_fastest_batch_size_is_found() -> None:
    clock = [0.0]

    def of_batch(size: int):
        def run(texts):
            clock[0] += {4: 3.0, 8: 1.0, 16: 2.0}[size]
            return np.zeros((len(texts), 1))

        return run

    assert best_batch(of_batch, (4, 8, 16), ["a"], lambda: clock[0]) == 8


def test_rows_are_prompt_and_completion_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    assert instruction_texts(str(file), 2) == ["a\nb", "c\nd"]
    with pytest.raises(InputError, match=r"--rows 3: .* has 2 rows"):
        instruction_texts(str(file), 3)
    chats = tmp_path / "chats.jsonl"
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}, {"from": "human", "value": "bye"}]
    chats.write_text(json.dumps({"other": 1}) + "\n" + json.dumps({"conversations": turns}) + "\n")
    monkeypatch.setattr(bench_embed_rows, "packaged_data", lambda reference: [chats])
    assert instruction_texts("package:x", 1) == ["hi\nhello"]


@pytest.mark.parametrize(
    "wrong",
    [["--contenders", "st,other"], ["--rows", "0"], ["--tokens", "2"], ["--data", "missing.jsonl"], ["--st-batches", "0"]],
)
def test_wrong_options_are_one_line_and_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(wrong) == 2
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("bench_embed: "))
    assert wrong[0] in said


def test_smoke_takes_turns_of_every_contender_and_judges_nothing(tmp_path: Path) -> None:
    assert main(["--smoke", "--threads", "1", "--st-batches", "4,16", "--json", str(tmp_path / "figures.json")]) == 0
    report = json.loads((tmp_path / "figures.json").read_text())
    entries = {entry["name"]: entry for entry in report["contenders"]}
    assert set(entries) == set(bench_embed.CONTENDERS)
    assert all(len(entry["turns"]) == 2 for entry in entries.values())
    assert report["bar"]["met"] is None
    assert entries["st"]["batch_rows"] == 32
    assert entries["st-best"]["batch_rows"] in (4, 16)
    # The same model and the same texts: the same vectors, but for rounding.
    assert entries["encoder"]["least_cosine"] > 0.9999
    assert entries["encoder-bf16"]["least_cosine"] > 0.99
