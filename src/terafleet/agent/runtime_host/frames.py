"""Cuts the pipes between agent and runtime into frames: four bytes of length, then the body."""

import os
from typing import Final

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""The longest body; whoever sends a longer one is broken or hostile."""

_LENGTH_BYTES: Final = 4
_READ_BYTES: Final = 1 << 20
_JOINED_BYTES_MAX: Final = 4096


class FrameTooLong(Exception):
    """A body is longer than a frame may be."""


class FrameCutOff(Exception):
    """The pipe ended inside a frame."""


def length_prefix(body: bytes) -> bytes:
    """What goes before a body: its length, little-endian. Raises FrameTooLong."""
    if len(body) > FRAME_BYTES_MAX:
        raise FrameTooLong(f"{len(body)} bytes")
    return len(body).to_bytes(_LENGTH_BYTES, "little")


class FrameSplitter:
    """Makes bodies of the bytes that a pipe happens to deliver."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, delivered: bytes) -> list[bytes]:
        """The bodies that `delivered` completes, in order. Raises FrameTooLong."""
        waiting = self._waiting
        waiting += delivered
        bodies = []
        position = 0
        while len(waiting) - position >= _LENGTH_BYTES:
            begin = position + _LENGTH_BYTES
            length = int.from_bytes(waiting[position:begin], "little")
            if length > FRAME_BYTES_MAX:
                raise FrameTooLong(f"{length} bytes")
            if len(waiting) - begin < length:
                break
            position = begin + length
            bodies.append(bytes(memoryview(waiting)[begin:position]))
        if position:
            del waiting[:position]
        return bodies

    def is_empty(self) -> bool:
        """Whether no frame is half delivered."""
        return not self._waiting


def read_body(descriptor: int) -> bytes | None:
    """The next body from a blocking pipe, None at its end. Raises FrameTooLong, FrameCutOff."""
    prefix = _read(descriptor, _LENGTH_BYTES)
    if not prefix:
        return None
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _LENGTH_BYTES:
        raise FrameCutOff("in a length")
    if length > FRAME_BYTES_MAX:
        raise FrameTooLong(f"{length} bytes")
    body = _read(descriptor, length)
    if len(body) < length:
        raise FrameCutOff("in a body")
    return body


def write_body(descriptor: int, body: bytes) -> None:
    """Put a frame into a blocking pipe. Raises FrameTooLong, BrokenPipeError."""
    prefix = length_prefix(body)
    # One call for what is small: it costs more than the copy.
    parts = (prefix + body,) if len(body) <= _JOINED_BYTES_MAX else (prefix, body)
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _read(descriptor: int, length: int) -> bytes:
    """Up to `length` bytes, fewer only at the end of the pipe."""
    parts = []
    missing = length
    while missing:
        part = os.read(descriptor, min(missing, _READ_BYTES))
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
