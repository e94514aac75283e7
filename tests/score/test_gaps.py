"""Reward gaps: joined by row id, averaged over samples, held-out rows apart, failed completions left out."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.score.gaps import shard_exchanges, write_gaps

PROMPT = [{"role": "user", "content": "hi"}]


def completion(row_id, sample, generated, tokens):
    return {
        "row_id": row_id,
        "sample": sample,
        "prompt_messages": PROMPT,
        "gold": f"gold {row_id}",
        "generated": generated,
        "gold_tokens": 7,
        "generated_tokens": tokens,
    }


SHARD = [
    completion("a", 0, "one", 1),
    completion("a", 1, "one two", 2),
    completion("b", 0, "x", 3),
    completion("b", 1, None, None),
    completion("c", 0, None, None),
    completion("c", 1, None, None),
]


def gaps(folder, scores, seconds=None, held_out=()):
    shard, parts = folder / "shard.parquet", []
    pq.write_table(pa.Table.from_pylist(SHARD), shard)
    for name, values in (("rewards", scores), ("second", seconds)):
        if values is not None:
            pq.write_table(pa.table({"row_id": list(values), "score": list(values.values())}), folder / name)
            parts.append([folder / name])
    facts = write_gaps([shard], parts[0], parts[1] if seconds else [], set(held_out), folder / "gaps.parquet")
    return {row["row_id"]: row for row in pq.read_table(folder / "gaps.parquet").to_pylist()}, facts


def test_gold_is_scored_once_and_every_sample_that_there_is():
    exchanges = {exchange.row_id: exchange.completion for exchange in shard_exchanges(pa.Table.from_pylist(SHARD))}
    assert exchanges == {"a:gold": "gold a", "a:0": "one", "a:1": "one two", "b:gold": "gold b", "b:0": "x"}


def test_what_was_cut_is_told_and_what_is_not_known_to_be_cut_is_whole():
    marked = [{**row, "gold_cut": row["row_id"] == "b", "generated_cut": row["sample"] == 1} for row in SHARD]
    exchanges = {exchange.row_id: exchange.cut for exchange in shard_exchanges(pa.Table.from_pylist(marked))}
    assert exchanges == {"a:gold": False, "a:0": False, "a:1": True, "b:gold": True, "b:0": False}
    assert not any(exchange.cut for exchange in shard_exchanges(pa.Table.from_pylist(SHARD)))


def test_a_gap_is_gold_less_the_mean_over_samples(tmp_path):
    scores = {"b:0": 4.0, "a:gold": 3.0, "a:1": 0.0, "b:gold": 1.0, "a:0": 1.0}
    rows, facts = gaps(tmp_path, scores, held_out=["b"])
    assert {name: (row["gap"], row["held_out"]) for name, row in rows.items()} == {
        "a": (2.5, False),
        "b": (-3.0, True),
        "c": (None, False),
    }
    assert facts == {"mean_gap": 2.5, "held_out_gap": -3.0, "held_out_reward": 4.0, "missing": 1, "errors": 1}
    assert {name: (row["gold_tokens"], row["generated_tokens"]) for name, row in rows.items()} == {
        "a": (7, 1.5),
        "b": (7, 3.0),
        "c": (7, None),
    }
    assert [row["second_gap"] for row in rows.values()] == [None] * 3


def test_a_second_scorer_has_a_gap_of_its_own(tmp_path):
    scores = {"a:gold": 3.0, "a:0": 1.0, "a:1": 1.0, "b:gold": None, "b:0": 1.0}
    seconds = {"a:gold": 0.0, "a:0": 1.0, "a:1": 0.0, "b:gold": 5.0, "b:0": 1.0}
    rows, facts = gaps(tmp_path, scores, seconds)
    assert [row["gap"] for row in rows.values()] == [2.0, None, None]
    assert [row["second_gap"] for row in rows.values()] == [-0.5, 4.0, None]
    assert (facts["missing"], facts["errors"]) == (2, 1)
    assert facts["mean_gap"] == pytest.approx(2.0)
    assert facts["held_out_gap"] is None
