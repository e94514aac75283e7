from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.data.export import write_rows, write_selection
from divsel_ray.errors import InputError

MESSAGES = [{"role": "user", "content": "Grüße\n"}, {"role": "assistant", "content": "😀"}]


def table(n=2):
    columns = {
        "row_id": [f"{i:032x}" for i in range(n)],
        "messages": [MESSAGES] * n,
        "prompt": ["x"] * n,
        "source": ["a.jsonl"] * n,
        "weight": [0.1 + 0.2] * n,
        "quality": [float("nan")] + [None] * (n - 1),
        "round": [1] * n,
        "cluster": [3] * n,
    }
    return pa.table(columns)


def test_a_line_holds_messages_first_exact_floats_and_null_for_no_number(tmp_path):
    write_selection(table(), tmp_path)
    first, second = (tmp_path / "selection.jsonl").read_text(encoding="utf-8").splitlines()
    assert first == (
        '{"messages": [{"role": "user", "content": "Grüße\\n"}, {"role": "assistant", "content": "😀"}], '
        '"row_id": "00000000000000000000000000000000", "cluster": 3, "quality": null, "round": 1, "source": "a.jsonl", '
        '"weight": 0.30000000000000004}'
    )
    assert json.loads(second)["quality"] is None


def test_parquet_holds_the_same_columns(tmp_path):
    write_selection(table(), tmp_path)
    written = pq.read_table(tmp_path / "selection.parquet")
    assert written.column_names == ["messages", "row_id", "cluster", "quality", "round", "source", "weight"]
    assert written["messages"].to_pylist() == [MESSAGES] * 2


def test_bytes_do_not_depend_on_how_the_table_was_put_together(tmp_path):
    whole = table(3000)
    pieces = pa.concat_tables([whole.slice(i, 700) for i in range(0, 3000, 700)]).replace_schema_metadata({"made": "otherwise"})
    write_selection(whole, tmp_path / "a")
    write_selection(pieces, tmp_path / "b")
    for name in ("selection.jsonl", "selection.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_parquet_is_written_in_row_groups_that_texts_of_any_length_fit_into(tmp_path):
    whole = pa.table({"row_id": [f"{i:032x}" for i in range(2500)], "messages": [[{"content": str(i)}] for i in range(2500)]})
    write_rows(pa.concat_tables([whole.slice(0, 1500), whole.slice(1500)]), tmp_path / "out.parquet")
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [1024, 1024, 452]
    assert pq.read_table(tmp_path / "out.parquet") == whole.select(["messages", "row_id"])


def test_a_selection_without_rows_keeps_its_columns(tmp_path):
    write_rows(table(1).slice(1), tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.num_rows == 0
    assert written.schema == table(1).select(written.column_names).schema


@pytest.mark.parametrize("name", ["out.jsonl", "out.PARQUET"])
def test_the_suffix_chooses_the_format(tmp_path, name):
    write_rows(table(), tmp_path / name)
    rows = (
        pq.read_table(tmp_path / name).to_pylist()
        if name.endswith("PARQUET")
        else list(map(json.loads, (tmp_path / name).open()))
    )
    assert [row["row_id"] for row in rows] == table()["row_id"].to_pylist()


def test_another_suffix_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match=r"out\.csv.*\.jsonl or \.parquet"):
        write_rows(table(), tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "out.jsonl").write_text("old")
    monkeypatch.setattr("divsel_ray.data.export.json.dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_rows(table(), tmp_path / "out.jsonl")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.jsonl", "old")]
