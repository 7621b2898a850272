"""A machine small enough to check by eye: accounts, amounts, and a book of what was said."""

from typing import ClassVar

import msgspec

from terafleet.engine.codec import Codec
from terafleet.engine.ports import Record


class AmountAdded(msgspec.Struct, frozen=True, tag=True):
    """An amount came to an account."""

    account: str
    amount: int


class AlarmSet(msgspec.Struct, frozen=True, tag=True):
    """The machine is to be woken at this time; `sticks` makes it ask for ever."""

    at_ms: int
    sticks: bool = False


class TimeAdvanced(msgspec.Struct, frozen=True, tag=True):
    """The time is now this."""

    at_ms: int


class RaiseAsked(msgspec.Struct, frozen=True, tag=True):
    """Plays a bug."""


class Announce(msgspec.Struct, frozen=True, tag=True):
    """May be said before the commit."""

    when: ClassVar[str] = "now"
    account: str
    total: int


class Promise(msgspec.Struct, frozen=True, tag=True):
    """Must not be said before the commit."""

    when: ClassVar[str] = "commit"
    account: str
    total: int


class KeepTotal(msgspec.Struct, frozen=True, tag=True):
    """Becomes a record."""

    when: ClassVar[str] = "record"
    account: str
    total: int


Event = AmountAdded | AlarmSet | TimeAdvanced | RaiseAsked
Effect = Announce | Promise | KeepTotal

CODEC: Codec[Event, Effect] = Codec(Event, Effect, schema=3)


class _State(msgspec.Struct):
    totals: dict[str, int] = {}
    groups: list[int] = []
    alarm_ms: int | None = None
    alarm_sticks: bool = False
    woken_at_ms: list[int] = []


class CounterLedger:
    """Adds amounts up; remembers the sizes of the groups in which they came."""

    def __init__(self, snapshot: bytes | None = None) -> None:
        """Fresh, or as the snapshot says."""
        self.state = msgspec.msgpack.decode(snapshot, type=_State) if snapshot else _State()

    def handle(self, *events: Event) -> list[Effect]:
        """Three effects an amount, one of each kind."""
        self.state.groups.append(len(events))
        effects: list[Effect] = []
        for event in events:
            match event:
                case AmountAdded(account, amount):
                    total = self.state.totals.get(account, 0) + amount
                    self.state.totals[account] = total
                    effects += [
                        Promise(account, total),
                        KeepTotal(account, total),
                        Announce(account, total),
                    ]
                case AlarmSet(at_ms, sticks):
                    self.state.alarm_ms, self.state.alarm_sticks = at_ms, sticks
                case TimeAdvanced(at_ms):
                    self.state.woken_at_ms.append(at_ms)
                    if not self.state.alarm_sticks:
                        self.state.alarm_ms = None
                case RaiseAsked():
                    raise AssertionError("a bug, as asked")
        return effects

    def next_deadline_ms(self) -> int | None:
        """The alarm."""
        return self.state.alarm_ms

    def snapshot(self) -> bytes:
        """All of it."""
        return msgspec.msgpack.encode(self.state)

    def check_invariants(self) -> None:
        """Nothing was woken before it had asked to be."""
        assert self.state.woken_at_ms == sorted(self.state.woken_at_ms)


def to_records(effect: Effect) -> list[Record]:
    """The total of an account as a record."""
    assert isinstance(effect, KeepTotal)
    return [Record("total", effect.account, str(effect.total).encode(), sort=effect.total)]
