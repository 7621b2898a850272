"""Measures what programs that are not ours use of the processor."""

import os

from terafleet.agent.adapters.vehicle.linux_files import names_in, read_text, whole

PERCENT = 100.0
TICKS_MIN = 20
"""A share is measured over at least so many ticks (of 10 ms) of all processors together."""

_USER, _NICE, _SYSTEM, _IDLE, _IOWAIT, _IRQ, _SOFTIRQ, _STEAL = range(8)
_PARENT, _USED = 1, slice(11, 15)
"""Fields of `/proc/PID/stat` behind the name: parent; times of itself and of ended children."""


class OtherLoad:
    """The share of the others since the last look: all that was busy, less our processes.

    Ours are a process and all that it ever started, however they are called or caged.
    """

    def __init__(self, root: str = "", process_id: int | None = None) -> None:
        self._root = root
        self._top_id = process_id or os.getpid()
        self._known: frozenset[int] = frozenset()
        self._ours: frozenset[int] = frozenset()
        self._seen: tuple[int, int, int] | None = None
        self._percent: float | None = None

    def percent(self) -> float | None:
        """Of all processors together; None before there are two looks, or where it is secret."""
        ticks = _all_ticks(read_text(f"{self._root}/proc/stat"))
        ours = self._our_ticks()
        if ticks is None or ours is None:
            self._seen = self._percent = None
            return None
        now = (*ticks, ours)
        if self._seen is None:
            self._seen = now
            return None
        total, busy, own = (new - old for new, old in zip(now, self._seen, strict=True))
        if total < TICKS_MIN:
            return self._percent
        self._seen = now
        # The two counts are not of one moment, so the difference may be off by some ticks.
        others = max(0, busy - max(0, own))
        self._percent = min(PERCENT, PERCENT * others / total)
        return self._percent

    def _our_ticks(self) -> int | None:
        """The time of our processes; one that has ended counts with the one that reaped it."""
        names = names_in(f"{self._root}/proc")
        if names is None:
            return None
        alive = frozenset(int(name) for name in names if name.isdigit())
        stats = {one: stat for one in self._ours & alive if (stat := self._stat(one))}
        for process_id in sorted(alive - self._known):
            # A process is younger than its parent, and so behind it unless the ids began anew.
            stat = self._stat(process_id)
            if stat and (process_id == self._top_id or int(stat[_PARENT]) in stats):
                stats[process_id] = stat
        self._known, self._ours = alive, frozenset(stats)
        if self._top_id not in stats:
            return None
        return sum(sum(map(int, stat[_USED])) for stat in stats.values())

    def _stat(self, process_id: int) -> list[str] | None:
        text = read_text(f"{self._root}/proc/{process_id}/stat")
        fields = (text or "").rpartition(")")[2].split()[: _USED.stop]
        numbers = fields[_PARENT:]
        if len(fields) < _USED.stop or None in map(whole, numbers):
            return None
        return fields


def _all_ticks(text: str | None) -> tuple[int, int] | None:
    """All ticks, and the busy ones; what another guest of the hardware took is neither ours."""
    words = (text or "").partition("\n")[0].split()
    ticks = [whole(word) for word in words[1 : _STEAL + 2]]
    if words[:1] != ["cpu"] or len(ticks) <= _STEAL or None in ticks:
        return None
    counts = [one for one in ticks if one is not None]
    total = sum(counts)
    return total, total - counts[_IDLE] - counts[_IOWAIT] - counts[_STEAL]
