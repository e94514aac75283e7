import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import PoolConfig
from divsel_ray.errors import InputError
from divsel_ray.evaluate.models import read_run
from divsel_ray.evaluate.rows import held_out_rows, known_clusters, nearest_clusters, read_file, trained_on, write_rows
from divsel_ray.progress import Silent
from tests.evaluate.worlds import conversation, write_run

A, B, C = conversation("how are you", "i am fine"), conversation("write a story", "the sea"), conversation("count", "one two")


ANY = PoolConfig(data=[])


class _Told(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def test_a_file_of_any_format_gives_each_conversation_once_by_row_id_and_tells_of_bad_rows(tmp_path):
    file, told = tmp_path / "rows.jsonl", _Told()
    rows = [{"prompt": "how are you", "completion": "i am fine"}, {"prompt": "", "completion": "x"}]
    rows += [{"prompt": "count", "completion": "one two"}, {"prompt": "how are you", "completion": "i am fine"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert read_file(str(file), "--rows", ANY, told) == sorted([A, C], key=lambda row: row["row_id"])
    assert len(told.lines) == 1
    assert "1 bad rows left out, the first: rows.jsonl line 2" in told.lines[0]


def test_of_a_run_that_took_first_exchanges_rows_are_cut_alike(tmp_path):
    file = tmp_path / "rows.jsonl"
    turns = [*A["messages"], {"role": "user", "content": "more"}, {"role": "assistant", "content": "no"}]
    file.write_text(json.dumps({"messages": turns}) + "\n")
    first = PoolConfig(data=[], turns="first")
    assert [row["row_id"] for row in read_file(str(file), "--rows", first, Silent())] == [A["row_id"]]


def test_of_a_run_that_named_columns_or_a_format_rows_are_read_by_them(tmp_path):
    file = tmp_path / "rows.jsonl"
    # Looked at alone, the row is a question with an answer.
    row = {"ask": "how are you", "reply": "i am fine", "question": "count", "answer": "one two"}
    file.write_text(json.dumps(row) + "\n")
    columns = PoolConfig(data=[], columns={"prompt": "ask", "completion": "reply"})
    assert read_file(str(file), "--rows", columns, Silent()) == [A]
    assert read_file(str(file), "--rows", ANY, Silent()) == [C]
    with pytest.raises(InputError, match=r"no conversation when read by the run's pool.format; the first row: .*instruction"):
        read_file(str(file), "--rows", PoolConfig(data=[], format="alpaca"), Silent())


def test_rows_longer_than_the_run_allowed_are_bad_rows(tmp_path):
    file, told = tmp_path / "rows.jsonl", _Told()
    file.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in (A, C)))
    assert read_file(str(file), "--rows", PoolConfig(data=[], max_chars=15), told) == [C]
    assert "1 bad rows left out" in told.lines[0]


def test_a_file_without_conversations_is_told(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match=r"--rows: .*contains no conversation"):
        read_file(str(file), "--rows", ANY, Silent())


def test_a_run_knows_what_it_held_out_and_what_it_trained_on(tmp_path):
    run = read_run(write_run(tmp_path / "job", [A, C], [B], {}))
    assert held_out_rows([run]) == sorted([A, C], key=lambda row: row["row_id"])
    assert trained_on([run]) == {B["row_id"]}


def test_runs_that_hold_out_other_rows_have_none_in_common(tmp_path):
    runs = [read_run(write_run(tmp_path / name, rows, [B], {})) for name, rows in (("a", [A]), ("b", [C]))]
    assert held_out_rows(runs) is None
    assert held_out_rows([]) is None


def test_rows_of_the_pool_keep_their_cluster_and_others_go_to_the_nearest_centroid(tmp_path):
    run = read_run(write_run(tmp_path / "job", [A], [B], {A["row_id"]: 1, B["row_id"]: 0}))
    assert known_clusters(run, [A["row_id"], C["row_id"]]) == {A["row_id"]: 1}
    vectors = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float16)
    # The tie goes to the lower number.
    assert nearest_clusters(run, vectors).tolist() == [0, 1, 0]


def test_rows_are_written_under_a_name_that_they_give(tmp_path):
    one, two = write_rows([A], tmp_path), write_rows([A, B], tmp_path)
    assert one != two
    assert write_rows([A], tmp_path) == one
    assert pq.read_table(two).column_names == ["row_id", "messages", "prompt", "completion"]
