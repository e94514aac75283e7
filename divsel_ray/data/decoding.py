"""The bytes of a file, decompressed on the way, such that nothing before a break is lost."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, cast

import pyarrow as pa

from divsel_ray.data.remote import Input, open_bytes
from divsel_ray.errors import first_line

COMPRESSIONS = (".gz", ".zst")
_BUFFER_BYTES = 1 << 16


class BrokenDataError(Exception):
    """The compressed data cannot be read from here on: damaged, or cut off."""


def open_stream(file: Input, compression: str) -> io.BufferedReader:
    """A file's bytes, of a compressed file what it holds.

    Args:
        file: the file.
        compression: the end of its suffix: `.gz`, `.zst` or nothing.

    Raises:
        BrokenDataError: on reading on where the compressed data is broken; everything before was handed over.
    """
    if compression == ".gz":
        return io.BufferedReader(_Gzip(file), _BUFFER_BYTES)
    if compression == ".zst":
        return io.BufferedReader(_Zstandard(file), _BUFFER_BYTES)
    stream = open_bytes(file)
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, _BUFFER_BYTES)


class _Gzip(io.RawIOBase):
    def __init__(self, file: Input) -> None:
        self._bytes = open_bytes(file)
        self._stream = gzip.GzipFile(fileobj=cast(Any, self._bytes))

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from one read."""
        try:
            # One read of the file below at most: `read` would lose what it had when it met the break.
            data = self._stream.read1(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BrokenDataError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file below too."""
        self._stream.close()
        self._bytes.close()
        super().close()


class _Zstandard(io.RawIOBase):
    """Arrow's decompressor loses what a failed read had gathered, so such a read is done again byte by byte."""

    def __init__(self, file: Input) -> None:
        self._file, self._given, self._failed = file, 0, False
        self._stream = self._open()

    def _open(self) -> pa.NativeFile:
        return pa.CompressedInputStream(pa.PythonFile(open_bytes(self._file), "r"), "zstd")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, after a failed read with one byte."""
        data = self._read(1 if self._failed else len(buffer))
        self._given += len(data)
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            return cast(bytes, self._stream.read(size))
        except OSError as error:
            if self._failed:
                raise BrokenDataError(first_line(error)) from None
        self._failed = True
        self._reopen()
        return self._read(1)

    def _reopen(self) -> None:
        """Come back to the place before the failed read."""
        self._stream.close()
        self._stream = self._open()
        left = self._given
        while left:
            left -= len(self._stream.read(min(left, _BUFFER_BYTES)))

    def close(self) -> None:
        """Close the file below too."""
        self._stream.close()
        super().close()
