"""Brings a machine back: the newest snapshot, then the journal behind it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from terafleet.core.machine import Machine
from terafleet.engine.codec import Codec, E, F, JournalUnreadable
from terafleet.engine.ports import Store

M = TypeVar("M", bound=Machine[Any, Any])
M_co = TypeVar("M_co", bound=Machine[Any, Any], covariant=True)


@dataclass(frozen=True, slots=True)
class Recovery(Generic[M_co]):
    """A machine as the record left it, and where the record stood.

    `events_replayed` is how many events lie behind the snapshot.
    """

    machine: M_co
    last_sequence: int
    last_at_ms: int
    events_replayed: int


def recover(store: Store, codec: Codec[E, F], restore: Callable[[bytes | None], M]) -> Recovery[M]:
    """Replay a store into a machine, in the groups in which the events were journaled.

    `restore` makes a machine of a snapshot, or a fresh one of None. Effects are discarded:
    what had to be done was either done before or is asked again by the machine once the
    caller tells it of the restart. Raises JournalUnreadable, and what the store raises.
    """
    recovered = store.recover()
    if recovered.snapshot is not None:
        codec.check_schema(recovered.snapshot_schema)
    machine = restore(recovered.snapshot)
    events_replayed = 0
    previous: int | None = None
    for entry in recovered.entries:
        codec.check_schema(entry.schema)
        if previous is not None and entry.sequence != previous + 1:
            raise JournalUnreadable(f"entry {entry.sequence} follows {previous}")
        events = codec.decode_events(entry.events)
        machine.handle(*events)
        events_replayed += len(events)
        previous = entry.sequence
    if previous is not None and previous != recovered.last_sequence:
        raise JournalUnreadable(f"ends at {previous}, expected {recovered.last_sequence}")
    return Recovery(machine, recovered.last_sequence, recovered.last_at_ms, events_replayed)
