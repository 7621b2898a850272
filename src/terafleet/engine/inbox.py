"""Holds events until the writer takes them in groups; decides when it is full."""

from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple

from terafleet.engine.codec import E
from terafleet.engine.ports import Blob


class _Waiting(NamedTuple):
    position: int
    size: int
    blobs: Sequence[Blob]


class Inbox(Generic[E]):
    """Events in the order in which they came, bounded in number and in bytes of their blobs."""

    def __init__(self, events_max: int, bytes_max: int) -> None:
        """Begin empty."""
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[E] = []
        self._blobs: deque[_Waiting] = deque()
        self._bytes = 0
        self._taken = 0

    def __len__(self) -> int:
        """How many events wait."""
        return len(self._events)

    def put(self, event: E, blobs: Sequence[Blob] = ()) -> bool:
        """Append an event with the blobs that belong to it; False if it was refused as full."""
        if len(self._events) >= self._events_max:
            return False
        if blobs:
            size = 0
            for blob in blobs:
                size += len(blob.body or b"")
            if self._bytes + size > self._bytes_max:
                return False
            self._bytes += size
            self._blobs.append(_Waiting(self._taken + len(self._events), size, blobs))
        self._events.append(event)
        return True

    def take(self, events_max: int, bytes_max: int) -> tuple[list[E], list[Blob]]:
        """The oldest events and their blobs: the longest group within both limits, at least one."""
        blobs, count = self._take_blobs(min(len(self._events), events_max), bytes_max)
        if count == len(self._events):
            events, self._events = self._events, []
        else:
            events = self._events[:count]
            del self._events[:count]
        self._taken += count
        return events, blobs

    def _take_blobs(self, count: int, bytes_max: int) -> tuple[list[Blob], int]:
        blobs: list[Blob] = []
        size = 0
        while self._blobs and self._blobs[0].position < self._taken + count:
            waiting = self._blobs[0]
            if size and size + waiting.size > bytes_max:
                return blobs, waiting.position - self._taken
            self._blobs.popleft()
            self._bytes -= waiting.size
            size += waiting.size
            blobs.extend(waiting.blobs)
        return blobs, count
