"""Streaming decompression of files that loses nothing before a point of damage."""

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
    """The compressed data cannot be read beyond this point: damaged or truncated."""


def open_stream(file: Input, compression: str) -> io.BufferedReader:
    """A file's bytes, decompressed if necessary.

    Args:
        file: the file.
        compression: end of its suffix: `.gz`, `.zst` or empty.

    Raises:
        BrokenDataError: while reading, where the compressed data is broken; everything before that point has been returned.
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
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from one read."""
        try:
            # At most one read of the underlying file: `read` would lose what it has gathered when it reaches the damage.
            data = self._stream.read1(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BrokenDataError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the underlying file too."""
        self._stream.close()
        self._bytes.close()
        super().close()


class _Zstandard(io.RawIOBase):
    """Repeats failed reads byte by byte, since Arrow's decompressor loses what a failed read has gathered."""

    def __init__(self, file: Input) -> None:
        self._file, self._given, self._failed = file, 0, False
        self._stream = self._open()

    def _open(self) -> pa.NativeFile:
        return pa.CompressedInputStream(pa.PythonFile(open_bytes(self._file), "r"), "zstd")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; after a failed read, with one byte only."""
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
        """Return to the position before the failed read."""
        self._stream.close()
        self._stream = self._open()
        left = self._given
        while left:
            left -= len(self._stream.read(min(left, _BUFFER_BYTES)))

    def close(self) -> None:
        """Close the underlying file too."""
        self._stream.close()
        super().close()
