"""The records of a JSON array, streamed: of a file of any size, little more than the largest record is held."""

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
"""Finds the end of a record with an integer of more digits than Python reads."""
_MARK = re.compile(r"[^ \t\n\r]")
_TOO_LONG = object()
_CUTTABLE = ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".0", "e+0", "e-0", "E+0", "E-0")
"""What may be half there where the text ends, beside strings."""


class BrokenArrayError(Exception):
    """A syntax error, after which nothing more of an array can be read.

    Attributes:
        lost: share of the text from the record with the error on, over that before it; None where that is the first record.
        characters: of the text from there on.
    """

    def __init__(self, reason: str, lost: float | None, characters: int) -> None:
        super().__init__(reason)
        self.lost, self.characters = lost, characters


def array_records(stream: io.BufferedReader) -> Iterator[object]:
    """The records of an array, with which the stream begins, as `json` reads them, so with NaN and Infinity.

    In place of one that ends but cannot be read come its bytes: it is not UTF-8, or a number in it is too long.

    Raises:
        EOFError: the stream ends inside the array.
        BrokenArrayError: a syntax error, or a record that is nested too deeply; the records before it were given.
        BrokenDataError: the compressed data is broken; the records before that were given.
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
    """The part of the text that is looked at; bytes that are not UTF-8 stand there as lone surrogates."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self._decode = stream, codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._at, self._ended = "", 0, False
        self._dropped = 0
        self._broken: BrokenDataError | None = None

    def next_mark(self) -> str:
        """The next character that is no white space, not taken; nothing at the end."""
        while not (found := _MARK.search(self._text, self._at)) and self._widen():
            pass
        self._at = found.start() if found else len(self._text)
        return found[0] if found else ""

    def take(self, mark: str) -> None:
        """Go behind the next character, which has to be this."""
        found = self.next_mark()
        if not found:
            raise EOFError
        if found != mark:
            raise self.error("Expecting ',' delimiter")
        self._at += 1

    def take_record(self) -> object:
        """The value that comes next, or its bytes."""
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
        """What is wrong at this place."""
        return json.JSONDecodeError(message, self._text, self._at)

    def broken(self, reason: str) -> BrokenArrayError:
        """What is wrong at this place, and how much text is lost with it."""
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
            # A number with which the text ends may be but the beginning of one.
            rest = json.JSONDecodeError("Expecting ',' delimiter", self._text, end)
            if _may_go_on(rest):
                raise rest
        return value, end

    def _widen(self) -> bool:
        """Read at least as much as is left, lest a large record be parsed too often; whether there can have been any."""
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
    """Whether the error is none if more text follows."""
    rest = error.doc[error.pos : error.pos + 10]
    if error.msg.startswith("Invalid \\u"):
        return len(rest) <= len("uD83D")
    return error.msg.startswith("Unterminated") or any(word != rest and word.startswith(rest) for word in _CUTTABLE)
