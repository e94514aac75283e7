"""Reward gaps: joined by row id, held-out rows apart, failed scores left out."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.score.gaps import pair_exchanges, write_gaps


def test_every_prompt_is_scored_with_both_completions():
    prompt = [{"role": "user", "content": "hi"}]
    pairs = pa.table({"row_id": ["a"], "prompt_messages": [prompt], "gold": ["good"], "generated": ["other"]})
    assert pair_exchanges(pairs).to_pylist() == [
        {"row_id": "a:gold", "messages": prompt, "completion": "good"},
        {"row_id": "a:generated", "messages": prompt, "completion": "other"},
    ]


def test_gaps_are_gold_less_generated_whatever_the_order_of_scores(tmp_path):
    scores = {"b:generated": 4.0, "a:gold": 3.0, "c:gold": None, "b:gold": 1.0, "c:generated": 2.0, "a:generated": 1.0}
    pq.write_table(pa.table({"row_id": list(scores), "score": list(scores.values())}), tmp_path / "scores.parquet")
    facts = write_gaps(["a", "b", "c"], {"b"}, tmp_path / "scores.parquet", tmp_path / "gaps.parquet")
    rows = {row["row_id"]: (row["gap"], row["held_out"]) for row in pq.read_table(tmp_path / "gaps.parquet").to_pylist()}
    assert rows == {"a": (2.0, False), "b": (-3.0, True), "c": (None, False)}
    assert facts == {"mean_gap": 2.0, "held_out_gap": -3.0, "held_out_reward": 4.0, "missing": 1}


def test_without_held_out_rows_there_is_no_held_out_gap(tmp_path):
    pq.write_table(pa.table({"row_id": ["a:gold", "a:generated"], "score": [1.0, 0.5]}), tmp_path / "scores.parquet")
    facts = write_gaps(["a"], set(), tmp_path / "scores.parquet", tmp_path / "gaps.parquet")
    assert facts["mean_gap"] == pytest.approx(0.5)
    assert facts["held_out_gap"] is None
