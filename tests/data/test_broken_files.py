"""Whatever happens to the bytes of a file, reading ends, and what stands before the damage is there."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from divsel_ray.data.pool import QUARANTINE, FileTask, parse_file
from divsel_ray.data.readers import SUFFIXES, read_records
from tests.json_lines import as_lines

ROWS = [{"prompt": f'Frage {i}, "zitiert"\nü{"x" * (i % 7)}', "completion": f"Antwort {i * 7919}"} for i in range(40)]
REUSED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
TEXTS = (".json", ".jsonl", ".csv", ".tsv")


def as_array(rows):
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_table(rows, delimiter=","):
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, ROWS[0], delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=pa.schema({key: pa.string() for key in ROWS[0]}))
    pq.write_table(table, sink, row_group_size=10, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def zstd(data):
    """Many small frames, so that a break in the middle leaves something before it."""
    return b"".join(pa.compress(data[at : at + 500], "zstd", asbytes=True) for at in range(0, len(data), 500))


WRITERS = {
    ".json": as_array,
    ".jsonl": as_lines,
    ".csv": as_table,
    ".tsv": lambda rows: as_table(rows, "\t"),
    ".parquet": as_parquet,
}


def whole_rows(kind, data, cut):
    """How many rows stand whole within so many bytes."""
    if kind == ".json":
        return sum(len(as_array(ROWS[:n]).rstrip(b"]\n")) <= cut for n in range(1, len(ROWS) + 1))
    return sum(len(WRITERS[kind](ROWS[:n])) <= cut for n in range(1, len(ROWS) + 1))


def read(path):
    records = list(read_records(path))
    assert all(record.position.split()[1].isdigit() for record in records)
    assert not any(record.ends for record in records[:-1])
    return records


def damaged(data, draw):
    """The bytes with a piece replaced, and where it begins."""
    begin = draw(st.integers(0, len(data) - 1))
    piece = draw(st.binary(min_size=1, max_size=4) | st.sampled_from([b'"', b"\n", b"\0", b"\xff", b"[", b"{", b"\\"]))
    return data[:begin] + piece + data[begin + draw(st.integers(0, 6)) :], begin


@pytest.mark.parametrize("kind", TEXTS)
@REUSED_FOLDER
@given(data=st.data())
def test_damage_costs_no_row_before_it(tmp_path, kind, data):
    path = tmp_path / f"x{kind}"
    changed, begin = damaged(WRITERS[kind](ROWS), data.draw)
    path.write_bytes(changed)
    records = read(path)
    whole = whole_rows(kind, changed, begin)
    assert [record.value for record in records[:whole]] == ROWS[:whole]
    assert not any(record.reason for record in records[:whole])


@REUSED_FOLDER
@given(data=st.data())
def test_damage_within_a_line_costs_that_line_only(tmp_path, data):
    lines = as_lines(ROWS).splitlines(keepends=True)
    place = data.draw(st.integers(0, len(ROWS) - 1))
    at = data.draw(st.integers(0, len(lines[place]) - 2))
    lines[place] = lines[place][:at] + b"\xff" + lines[place][at + 1 :]
    (tmp_path / "x.jsonl").write_bytes(b"".join(lines))
    records = read(tmp_path / "x.jsonl")
    assert [record.value for record in records if not record.reason] == ROWS[:place] + ROWS[place + 1 :]
    assert [record.position for record in records if record.reason] == [f"line {place + 1}"]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(("compression", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
@REUSED_FOLDER
@given(data=st.data())
def test_damaged_and_cut_off_compressed_files_are_read_as_far_as_they_go(tmp_path, kind, compression, compress, data):
    path = tmp_path / f"x{kind}{compression}"
    plain = WRITERS[kind](ROWS)
    packed = compress(plain)
    if data.draw(st.booleans()):
        begin = data.draw(st.integers(0, len(packed) - 1))
        packed = packed[:begin]
    else:
        packed, begin = damaged(packed, data.draw)
    path.write_bytes(packed)
    records = read(path)
    # Of Zstandard, every frame before the damage holds 500 bytes; of gzip, no share of one stream is promised.
    if compression == ".zst":
        frames = [len(zstd(plain[:end])) for end in range(500, len(plain), 500)]
        whole = whole_rows(kind, plain, 500 * sum(length <= begin for length in frames))
        assert [record.value for record in records[:whole]] == ROWS[:whole]


@REUSED_FOLDER
@given(data=st.data())
def test_damaged_and_cut_off_parquet_files_never_raise(tmp_path, data):
    path = tmp_path / "x.parquet"
    whole = as_parquet(ROWS)
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(data.draw(st.sampled_from([whole[:cut], damaged(whole, data.draw)[0]])))
    records = read(path)
    good = [record.value for record in records if not record.reason]
    assert len(good) == len(ROWS) or records[-1].reason


@REUSED_FOLDER
@given(cut=st.integers(1, 40))
def test_a_parquet_file_that_lost_its_end_is_one_bad_row(tmp_path, cut):
    (tmp_path / "x.parquet").write_bytes(as_parquet(ROWS)[:-cut])
    [record] = read(tmp_path / "x.parquet")
    assert record.ends
    assert record.reason.startswith("not readable as Parquet (")


@pytest.mark.parametrize("kind", WRITERS)
@REUSED_FOLDER
@given(data=st.data())
def test_good_and_bad_rows_of_a_damaged_file_are_all_its_records(tmp_path, kind, data):
    path, folder = tmp_path / f"x{kind}", tmp_path / str(len(list(tmp_path.iterdir())))
    path.write_bytes(damaged(WRITERS[kind](ROWS), data.draw)[0])
    facts = parse_file(FileTask(path, "x", 2, "prompt_completion"), folder)
    assert facts["rows"] == facts["good"] + facts["bad"] == len(list(read_records(path)))
    assert facts["bad"] == len((folder / QUARANTINE).read_text(encoding="utf-8").splitlines()) == sum(facts["reasons"].values())


@REUSED_FOLDER
@given(st.binary(max_size=60), st.sampled_from(SUFFIXES))
@example(b"[" * 5000, ".json")
@example(b"[1] 2", ".json")
@example(b'"', ".csv")
@example(b"a\n\x00\r", ".tsv")
def test_no_bytes_make_a_reader_raise(tmp_path, data, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    records = read(path)
    assert [record for record in records if record.ends] == [record for record in records[-1:] if record.ends]
