"""Splits bytes that come in pieces into numbered lines, with bounded memory."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from terafleet.control.ports import Objects

SLICE_BYTES = 64 * 1024
"""How much is worked on before the event loop gets its turn; about a millisecond of lines."""


class Line(NamedTuple):
    """A line without its end; `number` counts from 1. One that is too long is cut off."""

    number: int
    text: bytes


class LineSplitter:
    """Cuts pieces into lines at each LF; blank lines are counted and left out.

    A line longer than `line_bytes_max` is given with its first `line_bytes_max + 1` bytes, so
    that its reader sees that it is too long.
    """

    def __init__(self, line_bytes_max: int) -> None:
        """Begin at line 1."""
        self._kept_max = line_bytes_max + 1
        self._pieces: list[bytes] = []
        self._size = 0
        self._number = 0

    def feed(self, piece: bytes) -> list[Line]:
        """The lines that end in this piece."""
        first, *rest = piece.split(b"\n")
        self._keep(first)
        lines: list[Line] = []
        for text in rest:
            self._end_line(lines)
            self._keep(text)
        return lines

    def end(self) -> list[Line]:
        """The last line, if it has no LF."""
        lines: list[Line] = []
        self._end_line(lines)
        return lines

    def _keep(self, text: bytes) -> None:
        kept = text[: self._kept_max - self._size]
        if kept:
            self._pieces.append(kept)
            self._size += len(kept)

    def _end_line(self, lines: list[Line]) -> None:
        self._number += 1
        text = b"".join(self._pieces)
        if text and not text.isspace():
            lines.append(Line(self._number, text))
        self._pieces.clear()
        self._size = 0


async def read_lines(objects: Objects, name: str, line_bytes_max: int) -> AsyncIterator[list[Line]]:
    """The lines of an object in groups; between two groups others get their turn.

    Raises ObjectMissing.
    """
    splitter = LineSplitter(line_bytes_max)
    async for piece in objects.stream(name):
        for at in range(0, len(piece), SLICE_BYTES):
            yield splitter.feed(piece[at : at + SLICE_BYTES])
            await asyncio.sleep(0)
    yield splitter.end()
