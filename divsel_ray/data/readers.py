"""Rows of one file, streamed: JSON arrays, JSON Lines and Parquet, the first two also gzipped.

Whatever is wrong with a file is said row by row and never raised: a broken line is one bad row and reading goes on; a
JSON array with a syntax error, or cut off by a stopped download, gives every whole record and then one bad row that
says from where on nothing can be read.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".json", ".jsonl", ".parquet", ".json.gz", ".jsonl.gz")
_BATCH_ROWS = 512
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file, good or bad.

    Attributes:
        position: where it stands, counted from 1: `line 12`, `record 3`, `row 5`.
        value: the parsed row; of a bad row, its text as far as there is any.
        reason: why the row cannot be read, None for a good one.
        ends: whether nothing after this row can be read.
    """

    position: str
    value: object
    reason: str | None = None
    ends: bool = False


def known_suffix(path: Path) -> str | None:
    """The suffix by which the file would be read, None where there is no reader for it."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def read_records(path: Path) -> Iterator[Record]:
    """Stream the rows of one file; memory is bounded by its largest row (Parquet: by its largest row group).

    A `.json` file that does not begin with `[` is read as JSON Lines, for many are.

    Raises:
        ValueError: no reader for the suffix.
    """
    suffix = known_suffix(path)
    if suffix is None:
        raise ValueError(f"{path}: expected one of {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        yield from _read_parquet(path)
        return
    with _open(path, compressed=suffix.endswith(".gz")) as stream:
        yield from _read_json(stream, may_be_array=suffix.removesuffix(".gz") == ".json")


class _Decompressed(io.RawIOBase):
    """A gzip file that hands over whatever is decompressed, so that what precedes a break is not lost."""

    def __init__(self, path: Path) -> None:
        self._file = gzip.open(path, "rb")  # noqa: SIM115 (closed by close)

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from one read."""
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file below too."""
        self._file.close()
        super().close()


class _Prompt:
    """A stream for ijson that never waits for a full buffer, for the same reason, and knows whether it came to its end."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.ended = False

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end, and when ijson asks how large the pieces are."""
        data = self._stream.read1(size)
        self.ended = size > 0 and not data
        return data


def _open(path: Path, *, compressed: bool) -> io.BufferedReader:
    return io.BufferedReader(_Decompressed(path), 1 << 16) if compressed else path.open("rb")


def _read_json(stream: io.BufferedReader, *, may_be_array: bool) -> Iterator[Record]:
    try:
        if stream.peek(3).startswith(_BYTE_ORDER_MARK):
            stream.read(3)
        is_array = may_be_array and _first_byte(stream) == b"["
    except _BROKEN_GZIP as error:
        yield Record("line 1", "", f"the compressed data is broken: {error}", ends=True)
        return
    yield from _read_array(stream) if is_array else _read_lines(stream)


def _first_byte(stream: io.BufferedReader) -> bytes:
    """The first byte that is no white space, not consumed."""
    while head := stream.peek(1):
        rest = head.lstrip()
        stream.read(len(head) - len(rest))
        if rest:
            return rest[:1]
    return b""


def _read_array(stream: io.BufferedReader) -> Iterator[Record]:
    number, prompt = 0, _Prompt(stream)
    try:
        # Without use_float: with it, one integer beyond 64 bits would end the reading of the file.
        for number, value in enumerate(ijson.items(prompt, "item"), start=1):
            yield Record(f"record {number}", value)
    except ijson.JSONError as error:
        # At the end of the file the parser complains of whatever is half there: a literal, a number, an escape.
        reason = f"file ends inside record {number + 1:,}" if prompt.ended else _syntax_reason(str(error), number + 1)
        yield Record(f"record {number + 1}", "", reason, ends=True)
    except _BROKEN_GZIP as error:
        yield Record(f"record {number + 1}", "", f"the compressed data is broken: {error}", ends=True)


def _syntax_reason(error: str, number: int) -> str:
    what = re.search(r"error: ([^\n\\]+)", error)
    return f"not valid JSON ({what[1].strip() if what else error[:80]}): the rest from record {number:,} on cannot be read"


def _read_lines(stream: io.BufferedReader) -> Iterator[Record]:
    number = 0
    try:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parse_line(f"line {number}", line)
    except _BROKEN_GZIP as error:
        yield Record(f"line {number + 1}", "", f"the compressed data is broken: {error}", ends=True)


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


def _read_parquet(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for value in _batch_rows(batch):
                    number += 1
                    reason = "a value cannot be decoded" if value is None else None
                    yield Record(f"row {number}", value if reason is None else "", reason)
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0][:120]
        yield Record(f"row {number + 1}", "", f"not readable as Parquet ({what}): the rest is lost", ends=True)


def _batch_rows(batch: pa.RecordBatch) -> Iterator[dict[str, object] | None]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            yield _single_row(batch.slice(index, 1))


def _single_row(batch: pa.RecordBatch) -> dict[str, object] | None:
    try:
        return cast(dict[str, object], batch.to_pylist()[0])
    except (ValueError, OverflowError):
        return None
