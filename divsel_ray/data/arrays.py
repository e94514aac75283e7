"""The records of a JSON array, streamed: memory is little more than the largest record, whatever the file size."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import re
from collections.abc import Iterator

from divsel_ray.data.decoding import BrokenDataError

_READ_BYTES = 1 << 18
_DECODER = json.JSONDecoder()
_SKIPPER = json.JSONDecoder(parse_int=str)
"""Finds the end of a record that contains an integer with more digits than Python parses."""
_MARK = re.compile(r"[^ \t\n\r]")
_TOO_LONG = object()
_CUTTABLE = ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".0", "e+0", "e-0", "E+0", "E-0")
"""Tokens other than strings that may be truncated at the end of the text."""


class BrokenArrayError(Exception):
    """A syntax error, after which the rest of an array cannot be read.

    Attributes:
        lost: length of the text from the broken record on, relative to the text before it; None if it is the first record.
        characters: length of the text from the broken record on.
    """

    def __init__(self, reason: str, lost: float | None, characters: int) -> None:
        super().__init__(reason)
        self.lost, self.characters = lost, characters


def array_records(stream: io.BufferedReader) -> Iterator[object]:
    """The records of the array that the stream starts with, parsed as by `json`, including NaN and Infinity.

    A complete record that cannot be read is yielded as bytes: it is not UTF-8, or a number in it is too long.

    Raises:
        EOFError: the stream ends inside the array.
        BrokenArrayError: a syntax error, or a record that is nested too deeply; the records before it were yielded.
        BrokenDataError: the compressed data is broken; the records before that point were yielded.
    """
    text = _Text(stream)
    try:
        yield from _records(text)
    except json.JSONDecodeError as error:
        raise text.broken(error.msg) from None
    except RecursionError:
        raise text.broken("nested too deeply") from None


def _records(text: _Text) -> Iterator[object]:
    text.take("[")
    if text.next_mark() != "]":
        yield text.take_record()
        while text.next_mark() == ",":
            text.take(",")
            yield text.take_record()
    text.take("]")
    if text.next_mark():
        raise text.error("Extra data")


class _Text:
    """The current window of the text; bytes that are not UTF-8 appear as lone surrogates."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self._decode = stream, codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._at, self._ended = "", 0, False
        self._dropped = 0
        self._broken: BrokenDataError | None = None

    def next_mark(self) -> str:
        """The next character that is not white space, without consuming it; empty at the end."""
        while not (found := _MARK.search(self._text, self._at)) and self._widen():
            pass
        self._at = found.start() if found else len(self._text)
        return found[0] if found else ""

    def take(self, mark: str) -> None:
        """Consume the next character, which must be `mark`."""
        found = self.next_mark()
        if not found:
            raise EOFError
        if found != mark:
            raise self.error("Expecting ',' delimiter")
        self._at += 1

    def take_record(self) -> object:
        """Consume the next value; returns it, or its bytes."""
        self.next_mark()
        while True:
            try:
                value, end = self._decoded()
                break
            except json.JSONDecodeError as error:
                if not _may_go_on(error):
                    raise
            if not self._widen():
                raise EOFError
        text = self._text[self._at : end]
        self._at = end
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            return text.encode(errors="surrogateescape")
        return raw if value is _TOO_LONG else value

    def error(self, message: str) -> json.JSONDecodeError:
        """An error at the current position."""
        return json.JSONDecodeError(message, self._text, self._at)

    def broken(self, reason: str) -> BrokenArrayError:
        """An error at the current position, with the amount of text lost."""
        before, rest = self._dropped + self._at, len(self._text) - self._at
        with contextlib.suppress(BrokenDataError):
            while data := self._stream.read1(_READ_BYTES):
                rest += len(data)
        return BrokenArrayError(reason, rest / before if before > 1 else None, rest)

    def _decoded(self) -> tuple[object, int]:
        try:
            value, end = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError:
            raise
        except ValueError:
            value, end = _TOO_LONG, _SKIPPER.raw_decode(self._text, self._at)[1]
        if self._text[end - 1] not in '}]"':
            # A number at the end of the text may be truncated.
            rest = json.JSONDecodeError("Expecting ',' delimiter", self._text, end)
            if _may_go_on(rest):
                raise rest
        return value, end

    def _widen(self) -> bool:
        """Read at least as much as is left, so that large records are not parsed too often; False at the end of the stream."""
        if self._broken:
            raise self._broken
        if self._ended:
            return False
        self._dropped += self._at
        pieces, wanted = [self._text[self._at :]], len(self._text) - self._at
        self._text, self._at = "", 0
        while not self._ended and wanted >= 0:
            try:
                data = self._stream.read1(_READ_BYTES)
            except BrokenDataError as error:
                # What was read before the break comes first.
                self._broken, data = error, b""
            self._ended = not data
            pieces.append(self._decode(data, self._ended))
            wanted -= len(pieces[-1])
        self._text = "".join(pieces)
        return True


def _may_go_on(error: json.JSONDecodeError) -> bool:
    """Whether more text could resolve the error."""
    rest = error.doc[error.pos : error.pos + 10]
    if error.msg.startswith("Invalid \\u"):
        return len(rest) <= len("uD83D")
    return error.msg.startswith("Unterminated") or any(word != rest and word.startswith(rest) for word in _CUTTABLE)
