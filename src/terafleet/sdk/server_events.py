"""Cuts a stream of bytes into server-sent events; does not know what any of them means.

The form is that of the HTML standard, section "Server-sent events".
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

LINE_BYTES_MAX: Final = 1024 * 1024
EVENT_BYTES_MAX: Final = LINE_BYTES_MAX
"""For the data of one event, however many lines it has."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_LINE_ENDS: Final = b"\r\n"
_COLON: Final = ":"
_DATA: Final = "data"
_FIELDS_WITHOUT_MEANING: Final = ("event", "id", "retry")


class EventsOdd(Exception):
    """The bytes are no stream of events; the message says what is wrong with them."""


class Comment(msgspec.Struct, frozen=True):
    """A line that is for people, or that keeps the connection alive."""

    text: str


class Event(msgspec.Struct, frozen=True):
    """The data of one event."""

    data: str


def events_of(chunks: Iterable[bytes]) -> Iterator[Comment | Event]:
    """What comes, as soon as it has come. Raises EventsOdd.

    An event without the empty line behind it is none, and is dropped as the standard wants it:
    whoever knows the last event of a stream has to notice that it is missing.
    """
    data: list[str] = []
    data_bytes = 0
    for line in _lines_of(chunks):
        if not line:
            if data:
                yield Event("\n".join(data))
            data, data_bytes = [], 0
            continue
        name, colon, value = _text(line).partition(_COLON)
        value = value.removeprefix(" ")
        if colon and not name:
            yield Comment(value)
        elif name == _DATA:
            data.append(value)
            data_bytes += len(line)
            if data_bytes > EVENT_BYTES_MAX:
                raise EventsOdd(f"an event has more than {EVENT_BYTES_MAX} bytes")
        elif name not in _FIELDS_WITHOUT_MEANING:
            raise EventsOdd("a line is of no event")


def _lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without their ends, each as soon as it is whole; bytes behind the last are none."""
    held = bytearray()
    is_first, was_return = True, False
    for chunk in chunks:
        # A line end of two bytes may come in two chunks; its line has been told with the first.
        rest = chunk[1:] if was_return and chunk.startswith(b"\n") else chunk
        was_return = chunk.endswith(b"\r") if chunk else was_return
        for part in rest.splitlines(keepends=True):
            held += part
            if len(held) > LINE_BYTES_MAX:
                raise EventsOdd(f"a line has more than {LINE_BYTES_MAX} bytes")
            if part[-1] in _LINE_ENDS:
                line = bytes(held).rstrip(_LINE_ENDS)
                yield line.removeprefix(_BYTE_ORDER_MARK) if is_first else line
                is_first = False
                held.clear()


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EventsOdd("a line is not UTF-8") from error
