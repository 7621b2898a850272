"""Tells what became of the attempts of the last day, from the journal of the agent's record.

The newest come first, and no more is read than they need. Never what an attempt was about: inputs
are not in the journal, and outputs are left where they are.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from terafleet.core import guard_events as ev
from terafleet.core.guard_effects import AnyGuardEffect
from terafleet.core.ids import SESSION_UNIT, LeaseId
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.engine.codec import Codec, JournalUnreadable

RECORD_PATH = Path("record") / "record.sqlite"
"""In the data folder; `app` decides it."""

LIMIT_MAX = 10_000
BUSY_S = 2.0
_NEWEST_FIRST = "SELECT schema, events FROM journal WHERE at_ms >= ? ORDER BY sequence DESC"

WorkClass = Literal["live", "batch", ""]


class Outcome(StrEnum):
    """What became of an attempt."""

    ANSWERED = "answered"
    FAILED = "failed"
    GIVEN_BACK = "given_back"
    """The car gave it back: the owner came, or what the owner allows was over."""
    UNWANTED = "unwanted"
    """The control plane wanted it no more."""
    RUNNING = "running"


class AttemptRow(msgspec.Struct):
    """One attempt, or several of a lease that did not begin (`units`).

    `at_ms` is when it ended, `length_ms` how long it took, its wait for a slot included where it
    came to nothing. `reason` is the name of a failure or an ending, or empty. What was granted
    before the journal begins has neither class nor model.
    """

    at_ms: int
    outcome: Outcome
    reason: str = ""
    work_class: WorkClass = ""
    endpoint: str = ""
    model_id: str = ""
    length_ms: int = 0
    energy_mwh: int = 0
    answers: int = 0
    answers_failed: int = 0
    units: int = 1


class HistoryUnreadable(msgspec.Struct, frozen=True):
    """The record can't be read at present."""

    detail: str


def read_attempts(
    data_folder: Path, since_ms: int, limit: int, standing: Iterable[LeaseId] = ()
) -> list[AttemptRow] | HistoryUnreadable:
    """The newest attempts that ended since a time, `limit` at the most; none without a record.

    `standing` are the leases that the agent has at this moment.
    """
    path = data_folder / RECORD_PATH
    if not path.exists():
        return []
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S)
        with contextlib.closing(connection):
            groups = connection.execute(_NEWEST_FIRST, (since_ms,))
            return attempts_of(_decoded(groups), limit, standing)
    except (OSError, sqlite3.Error) as error:
        return HistoryUnreadable(f"{path}: {error}")


def attempts_of(
    groups: Iterable[Sequence[ev.AnyGuardEvent]], limit: int, standing: Iterable[LeaseId] = ()
) -> list[AttemptRow]:
    """The attempts that events tell of; groups come newest first, each in its own order."""
    fold = _Fold(min(limit, LIMIT_MAX), frozenset(standing))
    for group in groups:
        for event in reversed(group):
            fold.take(event)
        if fold.is_complete:
            break
    return sorted(fold.rows, key=lambda row: row.at_ms, reverse=True)


def _decoded(groups: Iterable[tuple[int, bytes]]) -> Iterator[list[ev.AnyGuardEvent]]:
    """The groups until one of another vocabulary: older ones are of another version, too."""
    codec: Codec[ev.AnyGuardEvent, AnyGuardEffect]
    codec = Codec(ev.AnyGuardEvent, AnyGuardEffect, ev.SCHEMA, keeps_effects=False)
    with contextlib.suppress(JournalUnreadable):
        for schema, body in groups:
            codec.check_schema(schema)
            yield codec.decode_events(body)


class _Lease:
    """What is known of a lease whose grant is still to come, as time runs backwards."""

    def __init__(self) -> None:
        self.rows: list[AttemptRow] = []
        """They have no class yet."""
        self.waits: AttemptRow | None = None
        """Its earliest attempt without a length; it began when the one before it ended."""
        self.told = 0
        """How many of its units had an end."""
        self.ending: tuple[int, Outcome, str] | None = None


class _Fold:
    """Takes events from the newest to the oldest."""

    def __init__(self, limit: int, standing: frozenset[LeaseId]) -> None:
        self.rows: list[AttemptRow] = []
        self._limit = limit
        self._standing = standing
        self._leases: dict[LeaseId, _Lease] = {}
        self._newest_ms = 0
        self._ending: tuple[int, Outcome, str] | None = None
        """What ended every lease that stood before it."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing that comes would change the rows."""
        is_full = len(self.rows) >= self._limit
        return is_full and not any(lease.rows for lease in self._leases.values())

    def take(self, event: ev.AnyGuardEvent) -> None:
        """Something happened before all that was taken so far."""
        self._newest_ms = self._newest_ms or event.at_ms
        match event:
            case ev.AttemptsFinished():
                self._finished(event)
            case ev.AttemptBroke():
                self._broke(event)
            case ev.LeaseGranted():
                self._granted(event)
            case ev.LeaseRevoked(at_ms=at_ms, lease_id=lease_id, ending=ending):
                self._lease(lease_id).ending = at_ms, Outcome.UNWANTED, str(ending)
            case ev.AgentStarted(at_ms=at_ms):
                self._ending = at_ms, Outcome.GIVEN_BACK, str(LeaseEnding.AGENT_RESTARTED)
            case ev.AgentStopping(at_ms=at_ms):
                self._ending = at_ms, Outcome.GIVEN_BACK, str(LeaseEnding.AGENT_STOPPED)
            case ev.LinkFenced(at_ms=at_ms):
                self._ending = at_ms, Outcome.UNWANTED, str(LeaseEnding.LINK_SILENT)
            case ev.RuntimeExited(at_ms=at_ms):
                self._ending = at_ms, Outcome.GIVEN_BACK, ""
            case _:
                pass

    def _finished(self, event: ev.AttemptsFinished) -> None:
        lease = self._lease(event.lease_id)
        _begun(lease, event.at_ms)
        end_ms = event.at_ms
        # One came after the other, and they were told together.
        for result in reversed(event.results):
            row = AttemptRow(end_ms, Outcome.ANSWERED, length_ms=result.runtime_ms)
            row.energy_mwh = result.energy_mwh
            row.answers, row.answers_failed = result.answers, result.answers_failed
            self._add(lease, row)
            end_ms -= result.runtime_ms

    def _broke(self, event: ev.AttemptBroke) -> None:
        lease = self._lease(event.lease_id)
        _begun(lease, event.at_ms)
        row = AttemptRow(event.at_ms, Outcome.FAILED, str(event.failure))
        if event.failure is Failure.STOPPED:
            row.outcome, row.reason = Outcome.GIVEN_BACK, ""
        row.energy_mwh = event.energy_mwh
        self._add(lease, row)
        lease.waits = row

    def _granted(self, event: ev.LeaseGranted) -> None:
        lease = self._leases.pop(event.lease_id, None) or _Lease()
        _begun(lease, event.at_ms)
        left = len(event.units) - lease.told
        if left > 0:
            self._left(lease, event, left)
        is_live = [unit.unit_id for unit in event.units] == [SESSION_UNIT]
        for row in lease.rows:
            row.work_class = "live" if is_live else "batch"
            row.endpoint, row.model_id = event.endpoint, event.model_id
            if row.outcome is Outcome.GIVEN_BACK and lease.ending is not None:
                _, row.outcome, row.reason = lease.ending

    def _left(self, lease: _Lease, event: ev.LeaseGranted, left: int) -> None:
        """The units of a lease that had no end: they run, or the lease ended before."""
        if event.lease_id in self._standing:
            row = AttemptRow(self._newest_ms, Outcome.RUNNING, units=left)
        else:
            usual = (event.at_ms, Outcome.GIVEN_BACK, "")
            at_ms, outcome, reason = lease.ending or self._ending or usual
            row = AttemptRow(at_ms, outcome, reason, units=left)
        self._add(lease, row)

    def _lease(self, lease_id: LeaseId) -> _Lease:
        return self._leases.setdefault(lease_id, _Lease())

    def _add(self, lease: _Lease, row: AttemptRow) -> None:
        lease.told += row.units
        if len(self.rows) < self._limit:
            self.rows.append(row)
            lease.rows.append(row)


def _begun(lease: _Lease, at_ms: int) -> None:
    """What an attempt of the lease waited for was there from this moment on."""
    if lease.waits is not None:
        lease.waits.length_ms = max(0, lease.waits.at_ms - at_ms)
        lease.waits = None
