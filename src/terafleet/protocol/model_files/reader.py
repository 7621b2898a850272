"""Reads a file forward, exactly and within limits, and refuses instead of running past an end."""

import os
import struct
from typing import BinaryIO

from terafleet.protocol.model_files.refusal import ModelFileReason, ParseRefused

# Small enough to waste little when weights are skipped, large enough to make few calls.
WINDOW_BYTES = 32 * 1024

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class BoundedReader:
    """Reads `file`, of `size_bytes` bytes, forward only; no byte is read twice.

    What lies behind `header_bytes_max` is out of reach, so that a parser of a header never
    walks into weights. Holds one window of the file; `take` alone can hold more, and its
    callers bound what they ask for. Raises `ParseRefused` and nothing else.
    """

    def __init__(
        self, file: BinaryIO, size_bytes: int, header_bytes_max: int | None = None
    ) -> None:
        assert size_bytes >= 0
        self.size_bytes = size_bytes
        self._file = file
        self._header_bytes_max = size_bytes if header_bytes_max is None else header_bytes_max
        self._window = b""
        self._window_start = 0
        self._at = 0
        actual_bytes = self._seek(0, os.SEEK_END)
        if actual_bytes != size_bytes:
            detail = f"the file has {actual_bytes} bytes, {size_bytes} were announced"
            raise ParseRefused(ModelFileReason.SIZE_MISMATCH, detail)

    @property
    def position(self) -> int:
        """Offset in the file, in bytes, of what is read next."""
        return self._window_start + self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if len(self._window) - self._at < count:
            self._refill(count)
        start = self._at
        self._at = start + count
        return self._window[start : self._at]

    def byte(self) -> int:
        """The next byte."""
        if self._at >= len(self._window):
            self._refill(1)
        value = self._window[self._at]
        self._at += 1
        return value

    def u32(self) -> int:
        """The next little-endian unsigned 32-bit integer."""
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def u64(self) -> int:
        """The next little-endian unsigned 64-bit integer."""
        value: int = _U64.unpack(self.take(8))[0]
        return value

    def skip(self, count: int) -> None:
        """Passes `count` bytes without reading them."""
        self._check_reach(count)
        self._at += count

    def skip_strings(self, count: int, length_max: int) -> None:
        """Passes `count` strings, each a 64-bit length in bytes and that many bytes.

        A string longer than `length_max` bytes is refused. The inner loop stays inside the
        window because a vocabulary has hundreds of thousands of strings.
        """
        unpack_from = _U64.unpack_from
        while count:
            if len(self._window) - self._at < _U64.size:
                self._refill(_U64.size)
            window, at = self._window, self._at
            last_start = len(window) - _U64.size
            while count and at <= last_start:
                (length,) = unpack_from(window, at)
                if length > length_max:
                    detail = f"a string of an array has {length} bytes, more than {length_max}"
                    raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
                at += _U64.size + length
                count -= 1
            self.skip(at - self._at)

    def _check_reach(self, count: int) -> None:
        assert count >= 0
        end = self.position + count
        if end > self.size_bytes:
            detail = f"the file ends at byte {self.size_bytes}, its header speaks of byte {end}"
            raise ParseRefused(ModelFileReason.TRUNCATED, detail)
        if end > self._header_bytes_max:
            detail = f"the header goes on behind byte {self._header_bytes_max}"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)

    def _refill(self, count: int) -> None:
        """Makes the next `count` bytes lie in the window."""
        self._check_reach(count)
        position = self.position
        kept = self._window[self._at :]
        reach = min(self.size_bytes, self._header_bytes_max) - position
        missing = min(max(count, WINDOW_BYTES), reach) - len(kept)
        self._seek(position + len(kept), os.SEEK_SET)
        self._window = kept + self._read_exactly(missing)
        self._window_start = position
        self._at = 0

    def _read_exactly(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self._file.read(count)
            except OSError as error:
                raise ParseRefused(ModelFileReason.UNREADABLE, str(error)) from error
            if not part:
                raise ParseRefused(ModelFileReason.TRUNCATED, "the file became shorter")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            raise ParseRefused(ModelFileReason.UNREADABLE, str(error)) from error
