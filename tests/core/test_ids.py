"""Names that are made of ids, and read again."""

from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.ids import (
    OUTPUTS,
    BatchId,
    LeaseId,
    ReceiptId,
    VehicleId,
    WorkUnitId,
    attempt_name,
    batch_outputs_folder,
    large_output_name,
    output_name,
    receipt_of,
    vehicle_outputs_folder,
)

numbers = st.integers(0, 2**62)


@given(lease=numbers, first=st.integers(-1, 2**62))
def test_the_name_of_a_receipts_outputs_says_which_receipt_it_is(lease: int, first: int) -> None:
    name = output_name(LeaseId(lease), ReceiptId(first))
    assert name.startswith(OUTPUTS)
    assert receipt_of(name) == (lease, first)


def test_no_two_receipts_have_outputs_of_one_name() -> None:
    pairs = [(LeaseId(lease), first) for lease in (1, 11, 111) for first in (1, 11, 111)]
    assert len({output_name(lease, ReceiptId(first)) for lease, first in pairs}) == len(pairs)
    units = [(lease_id, WorkUnitId(first)) for lease_id, first in pairs]
    assert len({attempt_name(*unit) for unit in units}) == len(pairs)
    assert len({large_output_name(*unit) for unit in units}) == len(pairs)


def test_large_outputs_lie_in_the_folder_of_their_car_and_that_in_the_one_of_its_batch() -> None:
    batch_id, vehicle_id = BatchId("batch_1"), VehicleId("veh-a")
    of_batch = batch_outputs_folder(batch_id)
    of_car = vehicle_outputs_folder(batch_id, vehicle_id)
    assert of_batch == f"{OUTPUTS}batch_1/"
    assert of_car == f"{of_batch}veh-a/"
    assert "/" not in large_output_name(LeaseId(1), WorkUnitId(2))
    # Folders end in a slash, so that the name of none begins as another one's.
    assert not vehicle_outputs_folder(batch_id, VehicleId("veh-ab")).startswith(of_car)
    assert not batch_outputs_folder(BatchId("batch_12")).startswith(of_batch)
