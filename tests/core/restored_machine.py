"""What holds of every machine that begins from a snapshot."""

from collections.abc import Sequence

from terafleet.core.events import FleetEvent
from terafleet.core.fleet import Fleet


def check_restored(history: Sequence[Sequence[FleetEvent]], cut: int) -> Fleet:
    """A machine restored after so many groups of events is the one that handled all of them."""
    first = Fleet()
    for events in history[:cut]:
        first.handle(*events)
    second = Fleet(first.snapshot())
    second.check_invariants()
    assert second.snapshot() == first.snapshot()
    for events in history[cut:]:
        assert second.handle(*events) == first.handle(*events)
        assert second.next_deadline_ms() == first.next_deadline_ms()
    second.check_invariants()
    assert second.snapshot() == first.snapshot()
    return second
