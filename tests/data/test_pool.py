from __future__ import annotations

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.data.hashing import uniform_hash
from divsel_ray.data.pool import (
    _KEY,
    QUARANTINE,
    FileTask,
    Layout,
    PartPlan,
    Threshold,
    find_threshold,
    parse_file,
    quarantine_line,
    write_keys,
    write_part,
)
from divsel_ray.data.readers import Record
from tests.json_lines import read_lines


def pair(number, **more):
    return {"prompt": f"question {number}", "completion": f"answer {number}", **more}


@pytest.fixture
def parsed(tmp_path, lines):
    """Parse lists of rows, one per file, into a layout with four partitions."""

    def parse(*files, **settings):
        layout = Layout(tmp_path, tuple(f"{i}.jsonl" for i in range(len(files))), 4, seed=0)
        for index, (source, rows) in enumerate(zip(layout.sources, files, strict=True)):
            path = lines(tmp_path / "in" / source, rows)
            facts.append(parse_file(FileTask(path, source, 4, **settings), layout.file_folder(index)))
        return layout

    facts = parse.facts = []
    return parse


def part_rows(layout, plan):
    for partition in range(layout.n_partitions):
        write_part(layout, partition, plan)
    return [row for p in range(layout.n_partitions) for row in pq.read_table(layout.part(p)).to_pylist()]


def test_the_facts_of_a_file_count_good_and_bad_rows_and_their_reasons(parsed):
    parsed([pair(1), {"prompt": "x"}, pair(1), 5, pair(2), {"prompt": "x"}, {"prompt": "x"}])
    assert parsed.facts[0] == {
        "format": "prompt_completion",
        "rows": 7,
        "good": 3,
        "bad": 4,
        "duplicates": 1,
        "reasons": {"no key completion": 3, "the row is a number, expected an object": 1},
        "first_bad": [
            "line 2: no key completion",
            "line 4: the row is a number, expected an object",
            "line 6: no key completion",
        ],
        "unreadable": None,
        "lost": 0,
    }


def test_rows_carry_the_place_of_their_record_among_good_and_bad_ones(parsed, tiny_tokenizer):
    layout = parsed([pair(1), {"prompt": "x"}, pair(2), pair(1), 5, pair(3)], [7, pair(4)])
    rows = part_rows(layout, PartPlan(None, tiny_tokenizer, with_score=False))
    assert sorted((row["prompt"], row["source"], row["position"]) for row in rows) == [
        ("question 1", "0.jsonl", 0),
        ("question 2", "0.jsonl", 2),
        ("question 3", "0.jsonl", 5),
        ("question 4", "1.jsonl", 1),
    ]


def test_a_row_of_several_conversations_is_one_row_and_all_of_them_have_its_place_and_score(parsed, tiny_tokenizer):
    instances = [{"input": str(i), "output": f"o{i}"} for i in range(3)]
    task = {"instruction": "i", "instances": instances, "s": 2}
    blank = {"instruction": "j", "instances": [*instances, {"input": "", "output": " "}]}
    layout = parsed([blank, task, {"instruction": "k", "instances": []}], score_column="s")
    facts = parsed.facts[0]
    assert (facts["format"], facts["rows"], facts["good"], facts["bad"]) == ("self_instruct", 3, 1, 2)
    assert facts["conversations"] == 3
    assert facts["reasons"] == {"the last assistant turn is blank": 1, "instances is empty, expected a list of objects": 1}
    rows = part_rows(layout, PartPlan(None, tiny_tokenizer, with_score=True))
    assert sorted((row["prompt"], row["completion"], row["position"], row["score"]) for row in rows) == [
        (f"i\n\n{i}", f"o{i}", 1, 2.0) for i in range(3)
    ]


def test_a_conversation_that_is_too_long_is_bad_and_counted_with_others_of_its_kind(parsed):
    fits, long = {"prompt": "p" * 5, "completion": "é" * 5}, [{"prompt": "p" * i, "completion": "c" * 1400} for i in (6, 7)]
    parsed([fits, *long], max_chars=10)
    assert parsed.facts[0]["good"] == 1
    assert parsed.facts[0]["reasons"] == {"more than 10 characters": 2}
    assert parsed.facts[0]["first_bad"] == [
        "line 2: 1,406 characters, at most 10",
        "line 3: 1,407 characters, at most 10",
    ]


def test_named_columns_are_read_whatever_the_format(parsed, tiny_tokenizer):
    row = {"instruction": "no", "output": "no", "data": {"ask": "hello"}, "reply": "you"}
    layout = parsed([row], columns={"prompt": "data.ask", "completion": "reply"}, format="alpaca")
    assert parsed.facts[0]["format"] == "columns"
    [row] = part_rows(layout, PartPlan(None, tiny_tokenizer, with_score=False))
    assert (row["prompt"], row["completion"]) == ("hello", "you")


@pytest.mark.parametrize("side", ["prompt", "completion"])
@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_row_with_a_blank_side_is_bad(parsed, side, blank):
    parsed([pair(1), {**pair(2), side: blank}])
    assert (parsed.facts[0]["good"], parsed.facts[0]["bad"]) == (1, 1)


def test_a_quarantined_row_is_shown_cut_to_two_thousand_characters(parsed):
    layout = parsed([pair(1), {"prompt": "é" * 5000}, {"prompt": "\ud800"}])
    long, surrogate = read_lines(layout.file_folder(0) / QUARANTINE)
    assert long["row"] == '{"prompt": "' + "é" * 1988
    assert surrogate == {"file": "0.jsonl", "position": "line 3", "reason": "no key completion", "row": '{"prompt": "\ud800"}'}


def test_the_number_of_counted_reasons_is_bounded(parsed):
    parsed([{"messages": [{"role": f"role {i}", "content": "x"}]} for i in range(80)])
    assert len(parsed.facts[0]["reasons"]) == 51
    assert parsed.facts[0]["reasons"]["other reasons"] == 30


def test_a_parsed_file_is_not_parsed_again(parsed, tmp_path):
    layout = parsed([pair(1)])
    (tmp_path / "in" / "0.jsonl").unlink()
    again = parse_file(FileTask(tmp_path / "in" / "0.jsonl", "0.jsonl", 4), layout.file_folder(0))
    assert again == parsed.facts[0]


def test_of_equal_rows_the_first_source_and_place_stands_with_the_largest_score(parsed, tiny_tokenizer):
    layout = parsed([pair(2, s=1.0), pair(1, s=2.0), pair(1, s=3.0)], [pair(1, s=4.0), pair(3, s=5.0)], score_column="s")
    rows = part_rows(layout, PartPlan(None, tiny_tokenizer, with_score=True))
    assert sorted((row["prompt"], row["source"], row["score"]) for row in rows) == [
        ("question 1", "0.jsonl", 4.0),
        ("question 2", "0.jsonl", 1.0),
        ("question 3", "1.jsonl", 5.0),
    ]
    assert [row["row_id"] for row in rows] == sorted(row["row_id"] for row in rows)


@pytest.mark.parametrize(
    ("value", "score"),
    [(2, 2.0), (0.5, 0.5), ("3.5", 3.5), ("high", None), (True, None), (None, None), (float("nan"), None), (10**400, None)],
)
def test_a_score_is_a_finite_number_or_missing(parsed, tiny_tokenizer, value, score):
    layout = parsed([pair(1, s=value)], score_column="s")
    assert [row["score"] for row in part_rows(layout, PartPlan(None, tiny_tokenizer, with_score=True))] == [score]


def test_tokens_of_prompt_and_completion_are_counted(parsed, tiny_tokenizer):
    layout = parsed([{"prompt": "hello hello", "completion": "hello, you"}])
    assert [row["n_tokens"] for row in part_rows(layout, PartPlan(None, tiny_tokenizer, with_score=False))] == [5]


@pytest.mark.parametrize("sample", [1, 7, 39])
def test_the_sample_is_the_rows_with_the_smallest_keys(parsed, tiny_tokenizer, sample):
    layout = parsed([pair(i) for i in range(40)])
    everything = np.array(
        [row["row_id"] for row in part_rows(layout, PartPlan(None, tiny_tokenizer, with_score=False))], dtype="S32"
    )
    for partition in range(4):
        layout.part(partition).unlink()
        write_keys(layout, partition, sample)
    threshold = find_threshold(layout, sample)
    rows = part_rows(layout, PartPlan(threshold, tiny_tokenizer, with_score=False))
    order = np.argsort(uniform_hash(0, "sample", everything))
    assert [row["row_id"] for row in rows] == [row_id.decode() for row_id in np.sort(everything[order[:sample]])]


def test_a_pool_no_larger_than_the_sample_has_no_threshold(parsed):
    layout = parsed([pair(i) for i in range(5)])
    for partition in range(4):
        write_keys(layout, partition, 5)
    assert find_threshold(layout, 5) is None
    assert find_threshold(layout, 4) is not None


def test_a_pool_of_one_partition_is_sampled_too(tmp_path, lines):
    layout = Layout(tmp_path, ("0.jsonl",), 1, seed=0)
    path = lines(tmp_path / "in" / "0.jsonl", [pair(i) for i in range(5)])
    parse_file(FileTask(path, "0.jsonl", 1), layout.file_folder(0))
    for sample, thinned in ((4, True), (5, False), (6, False)):
        write_keys(layout, 0, sample)
        assert (find_threshold(layout, sample) is not None) == thinned
        layout.key_file(0).unlink()


def test_equal_keys_are_told_apart_by_row_id(tmp_path):
    layout = Layout(tmp_path, (), 2, seed=0)
    layout.raw.mkdir()
    np.save(layout.key_file(0), np.array([(1, b"b"), (5, b"d")], dtype=_KEY))
    np.save(layout.key_file(1), np.array([(5, b"a"), (5, b"c"), (9, b"e")], dtype=_KEY))
    assert [find_threshold(layout, sample) for sample in (1, 2, 3, 4)] == [
        Threshold(1, "b"),
        Threshold(5, "a"),
        Threshold(5, "c"),
        Threshold(5, "d"),
    ]


def test_a_written_part_is_not_written_again(parsed, tiny_tokenizer):
    layout = parsed([pair(i) for i in range(9)])
    plan = PartPlan(None, tiny_tokenizer, with_score=False)
    counts = write_part(layout, 0, plan)
    before = layout.part(0).stat().st_mtime_ns
    assert write_part(layout, 0, plan) == counts
    assert layout.part(0).stat().st_mtime_ns == before


def test_what_no_json_line_shows_plainly_is_quarantined_too(tmp_path):
    pq.write_table(pa.table({"prompt": [Decimal("1.5")]}), tmp_path / "x.parquet")
    parse_file(FileTask(tmp_path / "x.parquet", "x", 1, "prompt_completion"), tmp_path / "parsed")
    [decimal] = read_lines(tmp_path / "parsed" / QUARANTINE)
    assert decimal["row"] == '{"prompt": 1.5}'
    deep = json.loads("[" * 900 + "]" * 900)
    for _ in range(5000):
        deep = [deep]
    assert json.loads(quarantine_line("x", Record("row 1", deep), "deep"))["row"] == "(nested too deeply to show)"
