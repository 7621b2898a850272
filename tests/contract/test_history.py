"""What the journal tells of attempts: their class, length, energy and end, newest first."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent import app, history
from terafleet.agent.history import (
    RECORD_PATH,
    AttemptRow,
    HistoryUnreadable,
    Outcome,
    attempts_of,
    read_attempts,
)
from terafleet.agent.service import guard_codec
from terafleet.core import guard_events as ev
from terafleet.core.ids import Epoch, LeaseId, ModelId, WorkUnitId
from terafleet.core.policy import OwnerPolicy
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.core.work import AttemptResult
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.ports import JournalEntry

SECRET = b"what a customer wrote"


def granted(at_ms: int, lease_id: int, *unit_ids: int, model: str = "m") -> ev.LeaseGranted:
    """A lease of units; unit 0 is a session."""
    units = tuple(ev.LeasedUnit(WorkUnitId(unit_id), 1) for unit_id in unit_ids)
    return ev.LeaseGranted(
        at_ms, Epoch(1), LeaseId(lease_id), ModelId(model), "/v1/embeddings", units
    )


def finished(at_ms: int, lease_id: int, *unit_ids: int, took_ms: int = 100) -> ev.AttemptsFinished:
    """Outputs of units, 7 mWh each."""
    results = tuple(
        AttemptResult(WorkUnitId(unit_id), 3, 1, 5, 0, 7, took_ms) for unit_id in unit_ids
    )
    return ev.AttemptsFinished(at_ms, LeaseId(lease_id), results, b"d" * 32, SECRET)


def broke(
    at_ms: int, lease_id: int, unit_id: int, failure: Failure = Failure.STOPPED
) -> ev.AttemptBroke:
    """A unit that gave nothing, 9 mWh."""
    return ev.AttemptBroke(
        at_ms, LeaseId(lease_id), WorkUnitId(unit_id), failure, SECRET.decode(), 9
    )


def told(
    *events: ev.AnyGuardEvent, limit: int = 100, standing: Sequence[int] = ()
) -> list[AttemptRow]:
    """What is told of events that came in this order, each in a group of its own."""
    groups = [(event,) for event in reversed(events)]
    return attempts_of(groups, limit, map(LeaseId, standing))


def facts(row: AttemptRow) -> tuple[int, str, str, int, int, int]:
    """A row without its class."""
    return row.at_ms, str(row.outcome), row.reason, row.length_ms, row.energy_mwh, row.units


def test_results_are_rows_with_the_class_of_their_lease() -> None:
    rows = told(granted(1_000, 1, 5, 6), finished(1_300, 1, 5, 6))
    assert [facts(row) for row in rows] == [
        (1_300, "answered", "", 100, 7, 1),
        (1_200, "answered", "", 100, 7, 1),
    ]
    first = rows[0]
    assert (first.work_class, first.endpoint, first.model_id) == ("batch", "/v1/embeddings", "m")
    assert (first.answers, first.answers_failed) == (3, 1)
    (live,) = told(granted(1_000, 1, 0), finished(1_300, 1, 0))
    assert live.work_class == "live"


def test_what_came_to_nothing_is_told_with_its_reason_and_since_its_lease_was_free() -> None:
    rows = told(
        granted(1_000, 1, 5, 6, 7),
        finished(1_200, 1, 5),
        broke(1_500, 1, 6, Failure.OUT_OF_MEMORY),
        granted(2_000, 2, 8),
        broke(2_250, 2, 8),
        ev.RuntimeExited(2_260, ""),
    )
    assert [facts(row) for row in rows] == [
        (2_260, "given_back", "", 0, 0, 1),
        (2_250, "given_back", "", 250, 9, 1),
        (1_500, "failed", "out_of_memory", 300, 9, 1),
        (1_200, "answered", "", 100, 7, 1),
    ]


@pytest.mark.parametrize(
    ("event", "outcome", "reason"),
    [
        (ev.LeaseRevoked(3_000, LeaseId(1), LeaseEnding.PREEMPTED), "unwanted", "preempted"),
        (ev.AgentStopping(3_000), "given_back", "agent_stopped"),
        (ev.AgentStarted(3_000, OwnerPolicy(), 1), "given_back", "agent_restarted"),
        (ev.LinkFenced(3_000, Epoch(1)), "unwanted", "link_silent"),
        (ev.RuntimeExited(3_000, ""), "given_back", ""),
    ],
)
def test_a_lease_that_ended_before_its_units_says_why(
    event: ev.AnyGuardEvent, outcome: str, reason: str
) -> None:
    later = ev.AgentStopping(9_000)
    (row,) = told(granted(1_000, 1, 5, 6), event, later)
    assert facts(row) == (3_000, outcome, reason, 0, 0, 2)


def test_a_unit_that_was_revoked_while_it_ran_was_not_wanted() -> None:
    revoked = ev.LeaseRevoked(2_000, LeaseId(1), LeaseEnding.BATCH_CANCELLED)
    (row,) = told(granted(1_000, 1, 5), revoked, broke(2_010, 1, 5))
    assert facts(row) == (2_010, "unwanted", "batch_cancelled", 1_010, 9, 1)


def test_a_lease_that_stands_is_at_hand() -> None:
    rows = told(granted(1_000, 4, 5), ev.GuardTimeAdvanced(5_000), standing=[4])
    assert [facts(row) for row in rows] == [(5_000, "running", "", 0, 0, 1)]


def test_what_was_granted_before_the_journal_has_no_class() -> None:
    (row,) = told(finished(1_000, 1, 5))
    assert (row.work_class, row.model_id, row.outcome) == ("", "", Outcome.ANSWERED)


def test_no_more_is_read_than_the_newest_rows_need() -> None:
    def groups() -> "list[tuple[ev.AnyGuardEvent, ...]]":
        events: list[tuple[ev.AnyGuardEvent, ...]] = []
        for number in range(1, 50):
            events += [
                (granted(number * 100, number, 1),),
                (finished(number * 100 + 50, number, 1),),
            ]
        return events[::-1]

    taken = iter(groups())
    rows = attempts_of(taken, limit=3)
    assert [row.at_ms for row in rows] == [4_950, 4_850, 4_750]
    assert all(row.model_id for row in rows)
    assert len(list(taken)) == 98 - 6


EVENTS = st.lists(
    st.one_of(
        st.builds(granted, st.integers(0, 99), st.integers(1, 4), st.integers(0, 3)),
        st.builds(finished, st.integers(0, 99), st.integers(1, 4), st.integers(0, 3)),
        st.builds(broke, st.integers(0, 99), st.integers(1, 4), st.integers(0, 3)),
        st.builds(ev.RuntimeExited, st.integers(0, 99), st.just("")),
        st.builds(
            ev.LeaseRevoked,
            st.integers(0, 99),
            st.builds(LeaseId, st.integers(1, 4)),
            st.sampled_from(LeaseEnding),
        ),
        st.builds(ev.AgentStopping, st.integers(0, 99)),
    ),
    max_size=30,
)


@given(EVENTS, st.integers(1, 5))
def test_any_journal_gives_bounded_rows_newest_first(
    events: list[ev.AnyGuardEvent], limit: int
) -> None:
    rows = told(*sorted(events, key=lambda event: event.at_ms), limit=limit)
    assert len(rows) <= limit
    times = [row.at_ms for row in rows]
    assert times == sorted(times, reverse=True)
    assert all(row.length_ms >= 0 and row.units >= 1 for row in rows)


def write_journal(folder: Path, *events: ev.AnyGuardEvent, schema: int = ev.SCHEMA) -> None:
    """A car's record with these events, each committed by itself."""
    path = folder / RECORD_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(path, synchronous="NORMAL")
    codec = guard_codec()
    last = store.recover().last_sequence
    for sequence, event in enumerate(events, last + 1):
        body = codec.encode_events([event])
        store.commit([JournalEntry(sequence, event.at_ms, schema, body, b"\x90")], [], [])
    store.close()


def test_the_record_is_where_the_agent_has_it() -> None:
    assert Path(app.RECORD_FOLDER) / app.RECORD_FILE == RECORD_PATH


def test_a_record_is_read_while_the_agent_writes_it(tmp_path: Path) -> None:
    write_journal(tmp_path, granted(1_000, 1, 5), finished(1_300, 1, 5))
    store = SqliteStore(tmp_path / RECORD_PATH, synchronous="NORMAL")
    rows = read_attempts(tmp_path, 0, 10)
    assert isinstance(rows, list)
    assert [facts(row)[:2] for row in rows] == [(1_300, "answered")]
    assert SECRET.decode() not in repr(rows)
    store.close()


def test_what_is_older_is_left_out_and_no_record_is_no_attempt(tmp_path: Path) -> None:
    assert read_attempts(tmp_path, 0, 10) == []
    write_journal(tmp_path, granted(1_000, 1, 5), finished(1_300, 1, 5), finished(9_000, 2, 1))
    rows = read_attempts(tmp_path, 5_000, 10)
    assert isinstance(rows, list)
    assert [row.at_ms for row in rows] == [9_000]


def test_what_another_version_wrote_ends_the_history(tmp_path: Path) -> None:
    write_journal(tmp_path, finished(1_000, 1, 5), schema=ev.SCHEMA - 1)
    write_journal(tmp_path, finished(2_000, 2, 5))
    rows = read_attempts(tmp_path, 0, 10)
    assert isinstance(rows, list)
    assert [row.at_ms for row in rows] == [2_000]


@pytest.mark.parametrize("body", [b"", b"no database", b"SQLite format 3\0" + b"x" * 200])
def test_a_damaged_record_is_unreadable_and_breaks_nothing(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / RECORD_PATH
    path.parent.mkdir()
    path.write_bytes(body)
    assert isinstance(read_attempts(tmp_path, 0, 10), HistoryUnreadable)


def test_damaged_events_end_the_history(tmp_path: Path) -> None:
    write_journal(tmp_path, finished(1_000, 1, 5), finished(2_000, 2, 5))
    connection = sqlite3.connect(tmp_path / RECORD_PATH)
    connection.execute("UPDATE journal SET events = x'c1' WHERE at_ms = 1000")
    connection.commit()
    connection.close()
    rows = read_attempts(tmp_path, 0, 10)
    assert isinstance(rows, list)
    assert [row.at_ms for row in rows] == [2_000]


def test_limits_are_bounded() -> None:
    assert history.LIMIT_MAX >= 1_000
    assert told(finished(1, 1, 1), limit=0) == []
