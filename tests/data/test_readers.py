from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divsel_ray.data.arrays import array_records
from divsel_ray.data.readers import known_suffix, read_records
from tests.json_lines import as_lines

ROWS = [{"i": i, "text": f"Grüße {i} 😀\n"} for i in range(5)]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0.5, -1.25]) | st.integers() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
)
REUSED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def values(path):
    return [record.value for record in read_records(path) if record.reason is None]


def bad(path):
    return [(record.position, record.reason) for record in read_records(path) if record.reason is not None]


def packed(name, data):
    if name.endswith(".zst"):
        # Through a stream, for frames that are written whole say how long they are and are checked as one.
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return gzip.compress(data) if name.endswith(".gz") else data


def put(folder, name, data):
    path = folder / name
    path.write_bytes(packed(name, data))
    return path


def as_array(rows):
    return json.dumps(rows, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.json", as_array(ROWS)),
        ("x.json.gz", as_array(ROWS)),
        ("x.jsonl", as_lines(ROWS)),
        ("x.jsonl.gz", as_lines(ROWS)),
        ("x.json", as_lines(ROWS)),
        ("x.json", b"\xef\xbb\xbf \n" + as_array(ROWS)),
        ("x.jsonl", b"\xef\xbb\xbf" + as_lines(ROWS)),
        ("X.JSONL", as_lines(ROWS).rstrip()),
        ("x.ndjson", as_lines(ROWS)),
        ("x.json.zst", as_array(ROWS)),
        ("x.jsonl.zst", as_lines(ROWS)),
        ("x.json", b" " * 300_000 + as_array(ROWS)),
    ],
)
def test_json_is_read_in_every_dress(tmp_path, name, data):
    path = put(tmp_path, name, data)
    assert values(path) == ROWS
    assert bad(path) == []


def test_parquet_rows_are_read_in_order(tmp_path):
    rows = [{"messages": [{"role": "user", "content": str(i)}], "n": i} for i in range(1300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=400)
    assert values(tmp_path / "x.parquet") == rows
    assert [record.position for record in read_records(tmp_path / "x.parquet")][-1] == "row 1300"


def test_positions_count_from_one_and_blank_lines_count(tmp_path):
    path = put(tmp_path, "x.jsonl", b'{"a":1}\n\n  \r\n{"a":2}\n')
    assert [record.position for record in read_records(path)] == ["line 1", "line 4"]
    path = put(tmp_path, "x.json", b"[1, 2]")
    assert [record.position for record in read_records(path)] == ["record 1", "record 2"]


def test_an_array_cut_off_inside_a_record_gives_all_whole_records(tmp_path):
    data = as_array(ROWS)
    path = put(tmp_path, "x.json", data[: data.index(b'"i": 3') + 4])
    assert values(path) == ROWS[:3]
    assert bad(path) == [("record 4", "file ends inside record 4")]
    assert list(read_records(path))[-1].ends


@pytest.mark.parametrize("at", [0, 1, 50, 5_000])
def test_an_array_says_about_how_many_records_are_lost_with_a_syntax_error(tmp_path, at):
    records = [b'{"i": %5d}' % i for i in range(10_000)]
    records[at] = records[at].replace(b":", b";")
    [record] = [one for one in read_records(put(tmp_path, "x.json", b"[" + b", ".join(records) + b"]")) if one.reason]
    assert record.ends
    # Of a file without a good record, rows are taken to have a kilobyte.
    assert record.lost == pytest.approx(10_000 - at - 1 if at else 130, rel=0.1)


def test_a_csv_whose_header_cannot_be_used_counts_its_rows_as_lost(tmp_path):
    [record] = list(read_records(put(tmp_path, "x.csv", b"a,a\n1,2\n3,4\n")))
    assert (record.ends, record.lost) == (True, 2)


def test_a_syntax_error_in_an_array_loses_only_what_follows(tmp_path):
    many = [{"i": i} for i in range(20_000)]
    path = put(tmp_path, "x.json", as_array(many)[:-1] + b" oops]")
    assert values(path) == many
    [(position, reason)] = bad(path)
    assert position == "record 20001"
    assert reason.startswith("not valid JSON (")
    assert reason.endswith("the rest from record 20,001 on cannot be read")


def test_an_integer_beyond_64_bits_does_not_end_the_reading(tmp_path):
    path = put(tmp_path, "x.json", b"[1, 99999999999999999999999, 1.25]")
    assert values(path) == [1, 99999999999999999999999, 1.25]


NOT_FINITE = [{"score": score, "text": f"NaN {i}"} for i, score in enumerate([0.5, math.nan, math.inf, -math.inf, 1e300, 2])]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_scores_that_are_no_numbers_are_read_from_an_array_as_from_lines(tmp_path, compression):
    array = put(tmp_path, f"x.json{compression}", as_array(NOT_FINITE))
    lines = put(tmp_path, f"x.jsonl{compression}", as_lines(NOT_FINITE))
    assert [repr(value) for value in values(array)] == [repr(value) for value in values(lines)]
    assert len(values(array)) == len(NOT_FINITE)
    assert bad(array) == []


def test_a_number_beyond_all_floats_is_read_from_an_array_as_from_lines(tmp_path):
    text = b'{"a": 1e99999999999999999999}'
    rows = [{"a": math.inf}, 2]
    assert values(put(tmp_path, "x.json", b"[" + text + b", 2]")) == values(put(tmp_path, "x.jsonl", text + b"\n2")) == rows


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON: a number is too long"),
        (b"-" + b"1" * 500_000, "not valid JSON: a number is too long"),
        (b'{"a": "\xff"}', "not valid UTF-8"),
    ],
)
def test_a_record_of_an_array_that_cannot_be_read_is_one_bad_row_with_its_text(tmp_path, text, reason):
    path = put(tmp_path, "x.json", b"[1, " + text + b", 2]")
    assert values(path) == [1, 2]
    assert bad(path) == [("record 2", reason)]
    assert [record.value for record in read_records(path)][1] == text.decode(errors="replace")


def test_a_record_nested_too_deeply_ends_an_array_and_says_so(tmp_path):
    path = put(tmp_path, "x.json", b"[1, " + b"[" * 5000 + b"]" * 5000 + b", 2]")
    assert values(path) == [1]
    assert bad(path) == [("record 2", "not valid JSON (nested too deeply): the rest from record 2 on cannot be read")]


@pytest.mark.parametrize("text", [b"[1,]", b"[,1]", b"[1 2]", b"[1]]", b"[1}", b"[1] [2]", b"[1, tru]", b'[1, "\\u12"]'])
def test_what_is_no_array_is_never_taken_for_one(tmp_path, text):
    assert all(record.value == 1 for record in read_records(put(tmp_path, "x.json", text)) if record.reason is None)
    assert len(bad(tmp_path / "x.json")) == 1


class Trickle(io.RawIOBase):
    """Gives a few bytes at a time, so that every character is once the last of a piece."""

    def __init__(self, data, size):
        self.data, self.size = data, size

    def readable(self):
        return True

    def readinto(self, buffer):
        piece, self.data = self.data[: self.size], self.data[self.size :]
        buffer[: len(piece)] = piece
        return len(piece)


@given(st.lists(ANY_JSON | st.floats(), max_size=6), st.booleans(), st.integers(1, 4), st.sampled_from([None, 1]))
def test_an_array_is_read_alike_however_its_bytes_arrive(rows, ascii_only, size, indent):
    data = json.dumps(rows, ensure_ascii=ascii_only, indent=indent).encode(errors="surrogatepass")
    records = list(array_records(io.BufferedReader(Trickle(data, size), 1)))
    assert [repr(record) for record in records] == [repr(row) for row in json.loads(data)]


def test_a_large_array_is_never_whole_in_memory(tmp_path):
    path = put(tmp_path, "x.json", as_array([{"text": "x" * 1000, "score": math.nan}] * 30_000))
    tracemalloc.start()
    assert sum(1 for _ in read_records(path)) == 30_000
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 5
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "not valid JSON: Expecting value"),
        (b'{"a": "\xff"}', "not valid UTF-8"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b"1" * 5000, "not valid JSON: a number is too long"),
    ],
)
def test_a_broken_line_is_one_bad_row(tmp_path, line, reason):
    path = put(tmp_path, "x.jsonl", b"1\n" + line + b"\n2\n")
    assert values(path) == [1, 2]
    assert bad(path) == [("line 2", reason)]


def test_a_broken_line_keeps_its_text(tmp_path):
    path = put(tmp_path, "x.jsonl", b'{"a": caf\xc3\xa9 \xff\n')
    assert [record.value for record in read_records(path)] == ['{"a": café \ufffd']


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize(("kind", "write"), [(".json", as_array), (".jsonl", as_lines)])
def test_a_cut_off_compressed_file_gives_what_precedes_the_cut(tmp_path, kind, write, compression):
    rows = [{"i": i, "text": str(i * 7919)} for i in range(60_000)]
    path = put(tmp_path, f"x{kind}{compression}", write(rows))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    read = values(path)
    assert 20_000 < len(read) < 40_000
    assert read == rows[: len(read)]
    [(_, reason)] = bad(path)
    assert reason.startswith("the compressed data is broken")


@pytest.mark.parametrize("name", ["x.jsonl.zst", "x.csv.zst"])
def test_garbage_after_compressed_data_costs_no_row(tmp_path, name):
    rows = [{"i": str(i)} for i in range(30_000)]
    path = put(tmp_path, name, as_lines(rows) if "jsonl" in name else b"i\n" + b"".join(b"%d\n" % i for i in range(30_000)))
    path.write_bytes(path.read_bytes() + b"garbage")
    assert values(path) == rows
    [(_, reason)] = bad(path)
    assert reason.startswith("the compressed data is broken")


def test_compressed_files_may_be_joined(tmp_path):
    for compression in (".gz", ".zst"):
        path = tmp_path / f"x.jsonl{compression}"
        path.write_bytes(packed(path.name, as_lines(ROWS)) * 2)
        assert values(path) == ROWS * 2
        assert bad(path) == []


@pytest.mark.parametrize("name", ["x.json.gz", "x.jsonl.gz", "x.csv.gz", "x.json.zst", "x.jsonl.zst", "x.tsv.zst"])
def test_a_file_of_plain_text_called_compressed_is_one_bad_row(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"plain text")
    assert [reason[:29] for _, reason in bad(path)] == ["the compressed data is broken"]


def test_a_broken_parquet_file_is_one_bad_row(tmp_path):
    path = put(tmp_path, "x.parquet", b"PAR1 not really")
    [(position, reason)] = bad(path)
    assert position == "row 1"
    assert reason.startswith("not readable as Parquet (")


def test_a_parquet_value_that_is_not_utf8_is_one_bad_row(tmp_path):
    text = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])), pa.py_buffer(b"a\xffc")]
    )
    pq.write_table(pa.table({"t": text}), tmp_path / "x.parquet")
    assert values(tmp_path / "x.parquet") == [{"t": "a"}, {"t": "c"}]
    assert bad(tmp_path / "x.parquet") == [("row 2", "a value cannot be decoded")]


def test_a_damaged_page_of_parquet_is_seen(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"t": [f"text {i} that is long enough" for i in range(50)]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True, row_group_size=10)
    damaged = path.read_bytes().replace(b"text 37", b"text 73")
    path.write_bytes(damaged)
    assert values(path) == table.to_pylist()[:30]
    [(position, reason)] = bad(path)
    assert position == "row 31"
    assert reason.startswith("not readable as Parquet (")


CSV_ROWS = [{"prompt": 'a "quoted", word', "completion": "two\nlines\r\nthree"}, {"prompt": "é", "completion": ""}]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz", "x.csv.zst", "x.tsv.zst"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_tables_of_text_are_read_with_their_header(tmp_path, name, end, mark):
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, CSV_ROWS[0], delimiter="\t" if "tsv" in name else ",", lineterminator=end)
    table.writeheader()
    table.writerows(CSV_ROWS)
    path = put(tmp_path, name, mark + text.getvalue().encode())
    assert values(path) == CSV_ROWS
    assert [record.position for record in read_records(path)] == ["line 2", "line 5"]


def test_broken_rows_of_a_csv_file_are_bad_one_by_one(tmp_path):
    lines = [b"a, b", b"1,2", b"1,2,3", b"1", b"", b"\xff,2", b'"1"x,2', b"1,2\r3", b"3,4"]
    path = put(tmp_path, "x.csv", b"\n".join(lines))
    assert values(path) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert bad(path) == [
        ("line 3", "3 values, expected 2 as in the header"),
        ("line 4", "1 values, expected 2 as in the header"),
        ("line 6", "not valid UTF-8"),
        ("line 7", "not valid CSV: ',' expected after '\"'"),
        ("line 8", "not valid CSV: new-line character seen in unquoted field"),
    ]


def test_a_quote_that_is_never_closed_costs_the_rest_and_says_so(tmp_path):
    path = put(tmp_path, "x.csv", b'a,b\n1,2\n"3,4\n5,6\n')
    assert values(path) == [{"a": "1", "b": "2"}]
    [record] = [record for record in read_records(path) if record.reason]
    assert (record.position, record.ends, record.lost) == ("line 3", True, 1)
    assert record.reason == "a quote is never closed: the rest is lost"


def test_a_long_cell_is_read(tmp_path):
    assert values(put(tmp_path, "x.csv", b"a\n" + b"x" * 300_000 + b"\n")) == [{"a": "x" * 300_000}]


@pytest.mark.parametrize(
    ("header", "reason"),
    [(b"a,a", "duplicate column name"), (b"a,\xff", "not valid UTF-8"), (b'a,"', "a quote is never closed.*")],
)
def test_a_csv_file_whose_header_cannot_be_used_is_one_bad_row(tmp_path, header, reason):
    [(position, found)] = bad(put(tmp_path, "x.csv", header + b"\n1,2\n3,4\n"))
    assert position == "line 1"
    assert re.fullmatch(rf"unusable header \({reason}\): nothing can be read", found)


def test_an_empty_file_holds_no_rows(tmp_path):
    assert list(read_records(put(tmp_path, "x.csv", b""))) == []
    assert list(read_records(put(tmp_path, "y.csv", b"a,b\n"))) == []
    assert list(read_records(put(tmp_path, "x.jsonl", b""))) == []
    assert list(read_records(put(tmp_path, "x.json", b" \n"))) == []
    assert list(read_records(put(tmp_path, "y.json", b"[]"))) == []


def test_a_file_with_another_suffix_is_refused(tmp_path):
    assert known_suffix(tmp_path / "x.txt") is None
    with pytest.raises(ValueError, match=r"x\.txt"):
        list(read_records(tmp_path / "x.txt"))


@REUSED_FOLDER
@given(st.lists(st.fixed_dictionaries({"v": ANY_JSON}), max_size=6), st.data())
def test_any_cut_of_any_array_gives_its_whole_records_first(tmp_path, rows, data):
    text = as_array(rows)
    cut = data.draw(st.integers(1, len(text) - 1))
    whole = sum(len(as_array(rows[:n])) - 1 <= cut for n in range(1, len(rows) + 1))
    path = put(tmp_path, "x.json", text[:cut])
    assert values(path) == rows[:whole]
    assert bad(path) == [(f"record {whole + 1}", f"file ends inside record {whole + 1}")]
