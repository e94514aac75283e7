"""Rows of one file, streamed: JSON arrays, JSON Lines, CSV and TSV, also compressed by gzip or Zstandard, and Parquet.

Defects of a file are reported row by row and never raised. A broken line is one bad row, and reading continues. A JSON array
with a syntax error, or a file truncated by an interrupted download, yields every complete record and then one bad row that
states from where on nothing can be read. Only a store that stops responding raises, since its file is not broken.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.data.arrays import BrokenArrayError, array_records
from divsel_ray.data.decoding import COMPRESSIONS, BrokenDataError, open_stream
from divsel_ray.data.remote import Input, RemoteFile, size_of
from divsel_ray.errors import first_line

_TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*_TEXTS, ".parquet", *(kind + compression for kind in _TEXTS for compression in COMPRESSIONS))
READABLE = f"{', '.join(_TEXTS)} (each also .gz or .zst) or .parquet"
_BATCH_ROWS = 512
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNKNOWN_ROW = 1_000
"""Assumed bytes per row if none could be read."""
_CELL_CHARS = 1 << 26
"""A cell longer than this is assumed to lack its closing quote."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file, good or bad.

    Attributes:
        position: position in the file, counted from 1: `line 12`, `record 3`, `row 5`.
        value: the parsed row; for a bad row, its text if available.
        reason: why the row cannot be read, None for a good one.
        ends: whether nothing after this row can be read.
        lost: estimated number of following rows that cannot be read for that reason.
    """

    position: str
    value: object
    reason: str | None = None
    ends: bool = False
    lost: int = 0


def known_suffix(file: Input) -> str | None:
    """The suffix that determines the reader of the file, None if there is no reader for it."""
    return next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)


def read_records(file: Input) -> Iterator[Record]:
    """Stream the rows of one file; memory is bounded by its largest row (Parquet: by its largest row group).

    A `.json` file that does not start with `[` is read as JSON Lines, a common mislabelling. The first line of CSV and TSV
    names the columns; every value there is a string.

    Raises:
        ValueError: no reader for the suffix.
        InputError: the store of a remote file does not respond.
    """
    suffix = known_suffix(file)
    if suffix is None:
        raise ValueError(f"{file}: expected {READABLE}")
    if suffix == ".parquet":
        yield from _read_parquet(file)
        return
    compression = next((compression for compression in COMPRESSIONS if suffix.endswith(compression)), "")
    with open_stream(file, compression) as stream:
        yield from _read_text(stream, suffix.removesuffix(compression))


def _read_text(stream: io.BufferedReader, kind: str) -> Iterator[Record]:
    try:
        if stream.peek(3).startswith(_BYTE_ORDER_MARK):
            stream.read(3)
        is_array = kind == ".json" and _first_byte(stream) == b"["
    except BrokenDataError as error:
        yield _broken("line 1", error)
        return
    if kind in (".csv", ".tsv"):
        yield from _read_csv(stream, "," if kind == ".csv" else "\t")
    else:
        yield from _read_array(stream) if is_array else _read_lines(stream)


def _broken(position: str, error: BrokenDataError) -> Record:
    return Record(position, "", f"the compressed data is broken: {error}", ends=True)


def _first_byte(stream: io.BufferedReader) -> bytes:
    """The first byte that is not white space, without consuming it."""
    while head := stream.peek(1):
        rest = head.lstrip()
        stream.read(len(head) - len(rest))
        if rest:
            return rest[:1]
    return b""


def _read_array(stream: io.BufferedReader) -> Iterator[Record]:
    number = lost = 0
    try:
        for number, record in enumerate(array_records(stream), start=1):
            position = f"record {number}"
            yield _parse_line(position, record) if isinstance(record, bytes) else Record(position, record)
        return
    except BrokenDataError as error:
        yield _broken(f"record {number + 1}", error)
        return
    except EOFError:
        reason = f"file ends inside record {number + 1:,}"
    except BrokenArrayError as error:
        reason = f"not valid JSON ({error}): the rest from record {number + 1:,} on cannot be read"
        rows = error.characters / _UNKNOWN_ROW if error.lost is None or not number else error.lost * number
        lost = max(0, round(rows) - 1)
    yield Record(f"record {number + 1}", "", reason, ends=True, lost=lost)


def _read_lines(stream: io.BufferedReader) -> Iterator[Record]:
    number = 0
    try:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parse_line(f"line {number}", line)
    except BrokenDataError as error:
        yield _broken(f"line {number + 1}", error)


def _parse_line(position: str, line: bytes) -> Record:
    try:
        return Record(position, json.loads(line.decode()))
    except UnicodeDecodeError:
        reason = "not valid UTF-8"
    except json.JSONDecodeError as error:
        reason = f"not valid JSON: {error.msg}"
    except RecursionError:
        reason = "not valid JSON: nested too deeply"
    except ValueError:
        reason = "not valid JSON: a number is too long"
    return Record(position, line.decode(errors="replace").strip(), reason)


class _CsvRow(NamedTuple):
    position: str
    fields: list[str] | str
    """The values, or the text of a row that cannot be read."""
    reason: str | None
    ends: bool
    lost: int = 0


class _TextLines:
    """Lines for `csv`, which reads as many as a row has; bytes that are not UTF-8 are replaced and flagged."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.last = ""
        self.valid = True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        try:
            self.last = line.decode()
        except UnicodeDecodeError:
            self.last, self.valid = line.decode(errors="replace"), False
        return self.last


def _read_csv(stream: io.BufferedReader, delimiter: str) -> Iterator[Record]:
    rows = _csv_rows(stream, delimiter)
    for position, fields, reason, *_ in rows:
        header = [name.strip() for name in fields]
        reasons = [reason, "duplicate column name" if len({*header}) < len(header) else None]
        wrong = next(filter(None, reasons), None)
        if wrong is None:
            yield from _named(rows, header)
        else:
            lost = sum(1 for _ in rows)
            yield Record(position, fields, f"unusable header ({wrong}): nothing can be read", ends=True, lost=lost)
        return


def _named(rows: Iterable[_CsvRow], header: list[str]) -> Iterator[Record]:
    for position, fields, reason, ends, lost in rows:
        if reason is not None:
            yield Record(position, fields, reason, ends, lost)
        elif len(fields) != len(header):
            yield Record(position, fields, f"{len(fields):,} values, expected {len(header):,} as in the header")
        else:
            yield Record(position, dict(zip(header, fields, strict=True)))


def _csv_rows(stream: io.BufferedReader, delimiter: str) -> Iterator[_CsvRow]:
    """All non-blank rows."""
    # The module's default limit would reject long conversations.
    csv.field_size_limit(_CELL_CHARS)
    lines = _TextLines(stream)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first, lines.valid = rows.line_num + 1, True
        position = f"line {first}"
        try:
            fields = next(rows)
        except StopIteration:
            return
        except BrokenDataError as error:
            yield _CsvRow(position, "", f"the compressed data is broken: {error}", ends=True)
            return
        except csv.Error as error:
            ends = str(error) == "unexpected end of data"
            what = str(error).partition(" - ")[0]
            reason = "a quote is never closed: the rest is lost" if ends else f"not valid CSV: {what}"
            yield _CsvRow(position, lines.last.strip(), reason, ends, rows.line_num - first if ends else 0)
            continue
        if fields:
            yield _CsvRow(position, fields, None if lines.valid else "not valid UTF-8", ends=False)


def _read_parquet(file: Input) -> Iterator[Record]:
    number, rows = 0, size_of(file) // _UNKNOWN_ROW
    try:
        with _open_parquet(file) as parquet:
            rows = parquet.metadata.num_rows
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    for value in _batch_rows(batch):
                        number += 1
                        reason = "a value cannot be decoded" if value is None else None
                        yield Record(f"row {number}", value if reason is None else "", reason)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = f"not readable as Parquet ({first_line(error)}): the rest is lost"
        yield Record(f"row {number + 1}", "", reason, ends=True, lost=max(0, rows - number - 1))


def _open_parquet(file: Input) -> pq.ParquetFile:
    if isinstance(file, RemoteFile):
        # A row group's columns in a few large requests.
        return pq.ParquetFile(file.open(random_access=True), pre_buffer=True, page_checksum_verification=True)
    return pq.ParquetFile(file, page_checksum_verification=True)


def _batch_rows(batch: pa.RecordBatch) -> Iterator[dict[str, object] | None]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            yield _single_row(batch.slice(index, 1))


def _single_row(batch: pa.RecordBatch) -> dict[str, object] | None:
    try:
        return cast(dict[str, Any], batch.to_pylist()[0])
    except (ValueError, OverflowError):
        return None
