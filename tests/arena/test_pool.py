"""The arena's pool: evaluation rows leave it, faults enter it, and what is known of rows is kept where no job looks."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.arena.pool import (
    SplitPlan,
    choose_rows,
    count_labels,
    describe_rows,
    label_rows,
    split_part,
    write_evaluation,
    write_labels,
)
from divsel_ray.config.arena import SpoilConfig
from divsel_ray.data.conversation import row_id
from tests.json_lines import read_lines


def conversation(number):
    return [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"a long answer {number}"}]


@pytest.fixture
def pool(tmp_path):
    rows = sorted((row_id(conversation(n)), n) for n in range(40))
    table = {
        "row_id": [one for one, _ in rows],
        "messages": [conversation(n) for _, n in rows],
        "source": ["data.jsonl"] * 40,
        "position": [n for _, n in rows],
    }
    pq.write_table(pa.table(table), tmp_path / "part-00000.parquet")
    return tmp_path / "part-00000.parquet"


@pytest.fixture
def evaluation(pool, tmp_path):
    ids = choose_rows([str(pool)], 10, seed=0)
    pq.write_table(pa.table({"row_id": ids}), tmp_path / "evaluation.parquet")
    return tmp_path / "evaluation.parquet"


def split(pool, evaluation, folder, **changes):
    plan = {"seed": 0, "evaluation": str(evaluation), "labels": {}, "spoil": None, "with_score": False}
    facts = split_part(str(pool), SplitPlan(**{**plan, **changes}), str(folder))
    written = read_lines(folder / "rows" / "part-00000.jsonl")
    return facts, written, pq.read_table(folder / "marks" / "part-00000.parquet").to_pylist()


def test_evaluation_rows_are_chosen_by_hash_and_not_by_place(pool, tmp_path):
    table = pq.read_table(pool)
    pq.write_table(table[:25], tmp_path / "one.parquet")
    pq.write_table(table[25:], tmp_path / "two.parquet")
    chosen = choose_rows([str(pool)], 10, seed=0)
    assert len(set(chosen)) == 10
    assert choose_rows([str(tmp_path / "two.parquet"), str(tmp_path / "one.parquet")], 10, seed=0) == chosen
    assert choose_rows([str(pool)], 10, seed=1) != chosen


def test_evaluation_rows_are_written_with_their_labels(pool, tmp_path):
    assert write_evaluation([str(pool)], 10, 0, {}, str(tmp_path / "evaluation.parquet")) == 10
    rows = pq.read_table(tmp_path / "evaluation.parquet").to_pylist()
    assert [row["row_id"] for row in rows] == choose_rows([str(pool)], 10, seed=0)
    assert all(row_id(row["messages"]) == row["row_id"] and row["label"] == "data.jsonl" for row in rows)


def test_evaluation_rows_leave_the_pool(pool, evaluation, tmp_path):
    facts, written, _ = split(pool, evaluation, tmp_path / "out")
    assert (facts["rows"], facts["removed"], facts["faults"]) == (30, 10, {})
    held = set(pq.read_table(evaluation)["row_id"].to_pylist())
    assert not held & {row_id(row["messages"]) for row in written}


def test_files_that_jobs_read_say_nothing_of_faults_or_labels(pool, evaluation, tmp_path):
    _, written, marks = split(pool, evaluation, tmp_path / "out", spoil=SpoilConfig(share=0.5))
    assert all(row.keys() == {"messages"} for row in written)
    assert [row_id(row["messages"]) for row in written] == [mark["row_id"] for mark in marks]


def test_spoiled_rows_are_flagged_with_their_new_ids(pool, evaluation, tmp_path):
    facts, written, marks = split(pool, evaluation, tmp_path / "out", spoil=SpoilConfig(share=0.5))
    known = {row_id(conversation(n)) for n in range(40)}
    spoiled = {mark["row_id"] for mark in marks if mark["fault"]}
    assert sum(facts["faults"].values()) == len(spoiled) > 5
    assert {row_id(row["messages"]) for row in written} - known == spoiled


def test_the_second_time_nothing_is_written(pool, evaluation, tmp_path):
    facts, _, _ = split(pool, evaluation, tmp_path / "out", spoil=SpoilConfig())
    before = (tmp_path / "out" / "rows" / "part-00000.jsonl").stat().st_mtime_ns
    again, _, _ = split(pool, evaluation, tmp_path / "out", spoil=SpoilConfig())
    assert again == facts
    assert (tmp_path / "out" / "rows" / "part-00000.jsonl").stat().st_mtime_ns == before


def test_labels_are_found_by_the_records_position(pool, tmp_path):
    lines = [json.dumps({"prompt": "p", "completion": "c", "task": f"task {n % 3}"}) for n in range(40)]
    lines[5] = "not JSON"
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    assert write_labels(tmp_path / "data.jsonl", "task", str(tmp_path / "labels.parquet")) == 39
    table = pq.read_table(pool)
    labels = label_rows(table, {"data.jsonl": str(tmp_path / "labels.parquet")})
    expected = ["" if n == 5 else f"task {n % 3}" for n in table["position"].to_pylist()]
    assert labels == expected
    assert label_rows(table, {}) == ["data.jsonl"] * 40


def test_a_selection_is_described_by_its_spoiled_rows_and_its_labels(tmp_path):
    marks = {
        "row_id": ["a", "b", "c", "d", "d"],
        "label": ["x", "x", "y", "z", "z"],
        "fault": ["", "other", "shuffled", "", "other"],
    }
    pq.write_table(pa.table(marks), tmp_path / "marks.parquet")
    pq.write_table(pa.table({"row_id": ["b", "c", "d"]}), tmp_path / "selected.parquet")
    found = describe_rows([str(tmp_path / "marks.parquet")], str(tmp_path / "selected.parquet"))
    assert found == {"spoiled": 2, "labels": 3}
    assert count_labels([str(tmp_path / "marks.parquet")] * 2) == 3
