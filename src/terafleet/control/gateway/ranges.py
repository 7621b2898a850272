"""Which bytes an HTTP range asks for (RFC 9110, section 14)."""

import re

import msgspec

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class ByteRange(msgspec.Struct, frozen=True):
    """Some of a body's bytes; `length` is at least 1."""

    offset: int
    length: int


class RangeUnsatisfiable(msgspec.Struct, frozen=True):
    """The range begins behind the body's end."""


def requested_range(header: str, size_bytes: int) -> ByteRange | RangeUnsatisfiable | None:
    """What a `Range` header asks of a body of this size; None is the whole body.

    A header that is malformed or asks for several ranges is passed over, as the RFC allows.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None:
        return None
    first, last = found.groups()
    if not first:
        return _suffix(int(last), size_bytes) if last else None
    begin = int(first)
    end = min(int(last) + 1, size_bytes) if last else size_bytes
    if last and int(last) < begin:
        return None
    if begin >= size_bytes:
        return RangeUnsatisfiable()
    return ByteRange(begin, end - begin)


def _suffix(length: int, size_bytes: int) -> ByteRange | RangeUnsatisfiable:
    """The last bytes of a body."""
    if length == 0 or size_bytes == 0:
        return RangeUnsatisfiable()
    length = min(length, size_bytes)
    return ByteRange(size_bytes - length, length)
