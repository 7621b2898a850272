"""Results of a lease: told together, in their order, each once, and none larger than a receipt."""

import hashlib
from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.results import ResultHooks, Results, address_name
from terafleet.core import guard_events as ev
from terafleet.core.ids import LeaseId, ReceiptId, WorkUnitId, output_name
from terafleet.core.work import AttemptResult
from terafleet.engine.clock import ManualClock
from terafleet.engine.ports import Blob
from terafleet.protocol.agent import INLINE_BYTES_MAX
from terafleet.protocol.parcel import ENTRY_BYTES_MAX, PARCEL_BYTES_MIN, unpack

LEASE = LeaseId(7)
FULL_BYTES = INLINE_BYTES_MAX - PARCEL_BYTES_MIN - ENTRY_BYTES_MAX
"""The largest output that may ride in a receipt."""


class Told(msgspec.Struct):
    """What the guard heard, and what was stored along with it."""

    event: ev.AttemptsFinished
    blobs: tuple[Blob, ...]

    @property
    def unit_ids(self) -> list[int]:
        """The units that it is about."""
        return [result.unit_id for result in self.event.results]


class Stage:
    """The results of one lease, and a guard's ear."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.expected: list[tuple[int, ReceiptId]] = []
        """Large outputs, and how much had been told when they were expected."""
        self.clock = ManualClock(5_000)
        hooks = ResultHooks(self._submit, self._expect, self.clock)
        self.results = Results(LEASE, "/out/b/a-car/?signature=s", hooks)

    def add(self, unit: int, output: bytes) -> None:
        """Take a result, with figures by which it is known again."""
        self.results.add(a_result(unit), output)

    def _submit(self, event: ev.AnyGuardEvent, blobs: Sequence[Blob]) -> bool:
        assert isinstance(event, ev.AttemptsFinished)
        self.told.append(Told(event, tuple(blobs)))
        return True

    def _expect(self, lease_id: LeaseId, receipt_id: ReceiptId) -> None:
        assert lease_id == LEASE
        self.expected.append((len(self.told), receipt_id))


def a_result(unit: int) -> AttemptResult:
    return AttemptResult(WorkUnitId(unit), 3, 1, unit * 10, unit * 100, 2, 250)


def test_nothing_is_told_of_nothing() -> None:
    stage = Stage()
    stage.results.tell()
    assert not stage.told


def test_what_came_together_is_told_together() -> None:
    stage = Stage()
    for unit in (3, 1, 2):
        stage.add(unit, b"output %d" % unit)
    assert not stage.told
    stage.results.tell()
    stage.results.tell()
    (told,) = stage.told
    assert (told.event.at_ms, told.event.lease_id) == (5_000, LEASE)
    assert told.event.results == (a_result(3), a_result(1), a_result(2))
    assert unpack(told.event.parcel) == {3: b"output 3", 1: b"output 1", 2: b"output 2"}
    assert told.event.digest == hashlib.sha256(told.event.parcel).digest()
    assert told.blobs == ()


def test_what_comes_later_is_told_alone() -> None:
    stage = Stage()
    stage.add(1, b"one")
    stage.results.tell()
    stage.add(2, b"two")
    stage.results.tell()
    assert [told.unit_ids for told in stage.told] == [[1], [2]]
    assert unpack(stage.told[1].event.parcel) == {2: b"two"}


def test_a_full_parcel_is_told_before_the_next_begins() -> None:
    stage = Stage()
    stage.add(1, b"x" * (FULL_BYTES - ENTRY_BYTES_MAX - 10))
    stage.add(2, b"y" * 10)
    assert not stage.told, "the two just fit"
    stage.add(3, b"")
    assert [told.unit_ids for told in stage.told] == [[1, 2]]
    stage.results.tell()
    assert [told.unit_ids for told in stage.told] == [[1, 2], [3]]
    stage.add(4, b"x" * (FULL_BYTES - ENTRY_BYTES_MAX - 10))
    stage.add(5, b"y" * 11)
    assert [told.unit_ids for told in stage.told[2:]] == [[4]], "one byte too many"


def test_the_largest_output_for_a_parcel_rides_and_one_byte_more_does_not() -> None:
    stage = Stage()
    stage.add(2**62, b"x" * FULL_BYTES)
    stage.results.tell()
    (told,) = stage.told
    assert len(told.event.parcel) <= INLINE_BYTES_MAX
    assert not stage.expected
    stage.add(2, b"x" * (FULL_BYTES + 1))
    assert stage.expected == [(1, 2)]
    assert stage.told[1].event.parcel == b""


def test_a_large_output_goes_alone_and_after_what_came_before() -> None:
    stage, output = Stage(), b"x" * INLINE_BYTES_MAX
    stage.add(1, b"one")
    stage.add(2, output)
    assert [told.unit_ids for told in stage.told] == [[1], [2]], "at once"
    stage.add(3, b"three")
    stage.results.tell()
    _, told, last = stage.told
    assert told.event.results == (a_result(2),)
    assert (told.event.parcel, told.event.digest) == (b"", hashlib.sha256(output).digest())
    assert told.blobs == (
        Blob(output_name(LEASE, ReceiptId(2)), output),
        Blob(address_name(LEASE, ReceiptId(2)), b"/out/b/a-car/7-2?signature=s"),
    )
    assert stage.expected == [(1, 2)], "before the guard heard of it"
    assert last.unit_ids == [3]


@given(
    st.lists(
        st.none()
        | st.integers(0, 2_000)
        | st.integers(0, 2 * FULL_BYTES)
        | st.integers(FULL_BYTES - 100, FULL_BYTES + 100),
        max_size=25,
    )
)
def test_each_result_is_told_once_in_its_order_in_as_few_receipts_as_may_be(
    sizes: list[int | None],
) -> None:
    stage, outputs, runs = Stage(), dict[int, bytes](), 1
    run_of: dict[int, int] = {}
    for unit, size in enumerate(sizes):
        if size is None:
            stage.results.tell()
            runs += 1
            continue
        outputs[unit] = bytes([unit]) * size
        run_of[unit] = runs
        stage.add(unit, outputs[unit])
    stage.results.tell()
    assert [unit for told in stage.told for unit in told.unit_ids] == list(outputs)
    for told in stage.told:
        check_told(told, outputs)
    for told, following in zip(stage.told, stage.told[1:], strict=False):
        units = [*told.unit_ids, following.unit_ids[0]]
        is_full = sum(ENTRY_BYTES_MAX + len(outputs[one]) for one in units) > (
            INLINE_BYTES_MAX - PARCEL_BYTES_MIN
        )
        assert is_full or run_of[units[-1]] != run_of[units[0]]
    large = [unit for unit, output in outputs.items() if len(output) > FULL_BYTES]
    assert [receipt_id for _, receipt_id in stage.expected] == large


def check_told(told: Told, outputs: dict[int, bytes]) -> None:
    """Whether a receipt can be made of it that holds these outputs."""
    event, (first, *_) = told.event, told.unit_ids
    assert len(event.parcel) <= INLINE_BYTES_MAX
    if event.parcel:
        assert unpack(event.parcel) == {unit: outputs[unit] for unit in told.unit_ids}
        assert event.digest == hashlib.sha256(event.parcel).digest()
        assert not told.blobs
    else:
        assert told.unit_ids == [first]
        assert event.digest == hashlib.sha256(outputs[first]).digest()
        assert told.blobs[0].body == outputs[first]
