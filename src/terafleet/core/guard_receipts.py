"""The receipts that a guard keeps until the control plane has acknowledged them."""

from collections.abc import Iterable

from terafleet.core.guard_effects import SendReceipt
from terafleet.core.guard_events import AttemptBroke, AttemptsFinished
from terafleet.core.ids import WHOLE_LEASE, LeaseId, ReceiptId, WorkUnitId
from terafleet.core.reasons import LeaseEnding

Key = tuple[LeaseId, ReceiptId]


def receipt_of_results(event: AttemptsFinished, asked_micro: int = 0) -> SendReceipt:
    """The receipt of outputs; it bears the number of the first one's unit."""
    receipt_id = ReceiptId(event.results[0].unit_id)
    return SendReceipt(
        event.lease_id,
        receipt_id,
        None,
        None,
        "",
        0,
        event.results,
        event.digest,
        event.parcel,
        asked_micro,
    )


def receipt_of_failure(event: AttemptBroke, asked_micro: int = 0) -> SendReceipt:
    """The receipt of an attempt that gave no output."""
    receipt_id = ReceiptId(event.unit_id)
    return SendReceipt(
        event.lease_id,
        receipt_id,
        event.failure,
        None,
        event.detail,
        event.energy_mwh,
        (),
        b"",
        b"",
        asked_micro,
    )


def receipt_of_ending(
    lease_id: LeaseId, ending: LeaseEnding, detail: str, asked_micro: int = 0
) -> SendReceipt:
    """The receipt of a lease that the car gives back with work left."""
    return SendReceipt(lease_id, WHOLE_LEASE, None, ending, detail, 0, (), b"", b"", asked_micro)


class ReceiptBook:
    """Receipts in the order in which they were written."""

    def __init__(self, receipts: list[SendReceipt] | None = None) -> None:
        self._receipts: dict[Key, SendReceipt] = {}
        for receipt in receipts or ():
            self.write(receipt)

    def write(self, receipt: SendReceipt) -> SendReceipt:
        """Keep a receipt; a later one of the same name takes its place."""
        self._receipts[receipt.lease_id, receipt.receipt_id] = receipt
        return receipt

    def acknowledge(self, keys: Iterable[Key]) -> tuple[Key, ...]:
        """Let receipts go; those that had not gone before."""
        kept = self._receipts
        return tuple([key for key in keys if kept.pop(key, None) is not None])

    def all(self) -> list[SendReceipt]:
        """Every receipt not yet acknowledged."""
        return list(self._receipts.values())

    def units_handed_in(self) -> dict[LeaseId, list[WorkUnitId]]:
        """The attempts, by lease, that wait for their acknowledgement."""
        units: dict[LeaseId, list[WorkUnitId]] = {}
        for receipt in self._receipts.values():
            if receipt.ending is None:
                unit_ids = units.setdefault(receipt.lease_id, [])
                unit_ids.extend(result.unit_id for result in receipt.results)
                if receipt.failure is not None:
                    unit_ids.append(WorkUnitId(receipt.receipt_id))
        return units
