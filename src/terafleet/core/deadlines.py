"""What the fleet must look at when time alone has passed."""

import heapq
from enum import StrEnum

import msgspec

from terafleet.core.ids import LeaseId


class DeadlineKind(StrEnum):
    """What is to be looked at."""

    SILENCE = "silence"
    QUARANTINE = "quarantine"
    BATCH_WINDOW = "batch_window"
    GATEWAY = "gateway"
    SESSION_QUEUE = "session_queue"
    WARM = "warm"


class Deadline(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A moment, and the thing it concerns; what has changed since is found out when it comes."""

    at_ms: int
    kind: DeadlineKind
    about: str


class DeadlinesImage(msgspec.Struct, frozen=True):
    """Deadlines as a snapshot holds them."""

    deadlines: list[Deadline]
    leases: dict[int, list[LeaseId]]


class Deadlines:
    """A heap for what is rare, and buckets of a second for leases, which come and go by thousands.

    A lease that ends in time leaves its bucket at once, so that nothing piles up.
    """

    def __init__(self, image: DeadlinesImage | None = None) -> None:
        self._heap = list(image.deadlines) if image else []
        heapq.heapify(self._heap)
        buckets = image.leases if image else {}
        self._buckets = {second: dict.fromkeys(leases) for second, leases in buckets.items()}
        self._seconds = sorted(self._buckets)

    def add(self, at_ms: int, kind: DeadlineKind, about: str) -> None:
        """Look at a thing at a moment."""
        heapq.heappush(self._heap, Deadline(at_ms, kind, about))

    def watch_lease(self, lease_id: LeaseId, overdue_ms: int) -> None:
        """Look at a lease in the second after it is overdue."""
        second = overdue_ms // 1_000 + 1
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
            heapq.heappush(self._seconds, second)
        bucket[lease_id] = None

    def forget_lease(self, lease_id: LeaseId, overdue_ms: int) -> None:
        """A lease has ended."""
        bucket = self._buckets.get(overdue_ms // 1_000 + 1)
        if bucket is not None:
            bucket.pop(lease_id, None)

    def next_ms(self) -> int | None:
        """The earliest moment."""
        self._drop_empty_seconds()
        moments = [self._heap[0].at_ms] if self._heap else []
        if self._seconds:
            moments.append(self._seconds[0] * 1_000)
        return min(moments, default=None)

    def due(self, now_ms: int) -> list[Deadline]:
        """The things whose moment has come, earliest first."""
        found = []
        while self._heap and self._heap[0].at_ms <= now_ms:
            found.append(heapq.heappop(self._heap))
        return found

    def leases_due(self, now_ms: int) -> list[LeaseId]:
        """The leases whose moment has come."""
        found: list[LeaseId] = []
        while self._seconds and self._seconds[0] * 1_000 <= now_ms:
            found.extend(self._buckets.pop(heapq.heappop(self._seconds)))
        return found

    def image(self) -> DeadlinesImage:
        """All of it, for a snapshot."""
        filled = sorted((second, bucket) for second, bucket in self._buckets.items() if bucket)
        leases = {second: list(bucket) for second, bucket in filled}
        return DeadlinesImage(sorted(self._heap), leases)

    def _drop_empty_seconds(self) -> None:
        while self._seconds and not self._buckets[self._seconds[0]]:
            del self._buckets[heapq.heappop(self._seconds)]
