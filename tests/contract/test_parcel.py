"""Parcels: what is packed is found again, and bytes that are no parcel hold nothing."""

import hashlib

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from terafleet.core.ids import WorkUnitId
from terafleet.protocol.parcel import ENTRY_BYTES_MAX, PARCEL_BYTES_MIN, pack, unpack

UNIT_ID_MAX = 2**63 - 1

outputs = st.dictionaries(
    st.integers(0, UNIT_ID_MAX).map(WorkUnitId), st.binary(max_size=300), max_size=40
)


@given(outputs)
def test_what_is_packed_is_found_again_in_its_order(packed: dict[WorkUnitId, bytes]) -> None:
    found = unpack(pack(packed.items()))
    assert list(found.items()) == list(packed.items())


@given(outputs)
def test_a_parcel_takes_no_more_than_its_parts_may(packed: dict[WorkUnitId, bytes]) -> None:
    bound = PARCEL_BYTES_MIN + sum(ENTRY_BYTES_MAX + len(body) for body in packed.values())
    assert len(pack(packed.items())) <= bound


@pytest.mark.parametrize("size", [0, 255, 256, 65_535, 65_536])
def test_the_greatest_entry_keeps_within_the_bound(size: int) -> None:
    empty, full = pack([]), pack([(WorkUnitId(UNIT_ID_MAX), b"x" * size)])
    assert len(full) - len(empty) <= ENTRY_BYTES_MAX + size


@pytest.mark.parametrize("entries", [0, 15, 16, 65_535, 65_536])
def test_many_entries_keep_within_the_bound(entries: int) -> None:
    smallest = pack([(WorkUnitId(0), b"")] * entries)
    one_by_one = entries * (len(pack([(WorkUnitId(0), b"")])) - len(pack([])))
    assert len(smallest) - one_by_one <= PARCEL_BYTES_MIN


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
def test_no_bytes_are_too_strange(body: bytes) -> None:
    assert all(isinstance(output, bytes) for output in unpack(body).values())


@given(outputs.map(lambda packed: pack(packed.items())), st.data())
def test_a_damaged_parcel_never_raises(parcel: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(parcel) - 1))
    damage = data.draw(st.binary(max_size=3))
    found = unpack(parcel[:at] + damage + parcel[at + data.draw(st.integers(0, 3)) :])
    assert all(isinstance(output, bytes) for output in found.values())


@given(outputs.filter(bool), st.data())
def test_a_parcel_that_is_cut_or_goes_on_is_none(
    packed: dict[WorkUnitId, bytes], data: st.DataObject
) -> None:
    parcel = pack(packed.items())
    assert unpack(parcel[: data.draw(st.integers(0, len(parcel) - 1))]) == {}
    assert unpack(parcel + b"\x00") == {}


NAN = float("nan")


@pytest.mark.parametrize(
    "strange",
    [
        None,
        7,
        "text",
        b"bytes",
        {1: b"output"},
        [1, b"output"],
        [[1]],
        [[1, b"output", 2]],
        [["1", b"output"]],
        [[NAN, b"output"]],
        [[None, b"output"]],
        [[1, None]],
        [[1, [b"output"]]],
        [[1, b"output"], []],
    ],
)
def test_messages_of_another_form_are_no_parcel(strange: object) -> None:
    assert unpack(msgspec.msgpack.encode(strange)) == {}


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\x7f\xff\xff\xff\x92\x01\xc4\x00",
        b"\x91\x92\x01\xc6\xff\xff\xff\xff",
        b"\x91\x92\xd6\xff\x00\x00\x00\x00\xc4\x00",
        b"\x91\xa1\xff",
    ],
    ids=["lists", "maps", "endless", "endless-begun", "endless-output", "a-time", "no-text"],
)
def test_depths_and_lengths_that_lie_are_no_parcel(body: bytes) -> None:
    assert unpack(body) == {}


def test_of_two_outputs_of_a_unit_the_last_is_taken() -> None:
    unit_id = WorkUnitId(1)
    assert unpack(pack([(unit_id, b"first"), (unit_id, b"last")])) == {1: b"last"}


def test_the_same_outputs_make_the_same_bytes() -> None:
    packed = {WorkUnitId(1): b"one", WorkUnitId(2): b"two"}
    digest = hashlib.sha256(pack(packed.items())).digest()
    assert hashlib.sha256(pack(list(packed.items()))).digest() == digest
