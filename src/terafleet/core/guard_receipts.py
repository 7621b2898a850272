"""The receipts that a guard keeps until the control plane has acknowledged them."""

from terafleet.core.guard_effects import ForgetReceipt, SendReceipt
from terafleet.core.guard_events import AttemptBroke, AttemptFinished
from terafleet.core.ids import LeaseId, WorkUnitId
from terafleet.core.reasons import Failure, LeaseEnding

WHOLE_LEASE = WorkUnitId(-1)
"""Stands for the lease itself where a unit's number would stand."""

_Key = tuple[LeaseId, WorkUnitId]


def receipt_of_result(event: AttemptFinished) -> SendReceipt:
    """The receipt of an output."""
    return SendReceipt(
        event.lease_id,
        event.unit_id,
        None,
        None,
        "",
        event.answers,
        event.answers_failed,
        event.prompt_tokens,
        event.completion_tokens,
        event.energy_mwh,
        event.runtime_ms,
        event.digest,
    )


def receipt_of_failure(event: AttemptBroke) -> SendReceipt:
    """The receipt of an attempt that gave no output."""
    return _receipt(
        event.lease_id, event.unit_id, event.failure, None, event.detail, event.energy_mwh
    )


def receipt_of_ending(lease_id: LeaseId, ending: LeaseEnding, detail: str) -> SendReceipt:
    """The receipt of a lease that the car gives back with work left."""
    return _receipt(lease_id, WHOLE_LEASE, None, ending, detail, 0)


def _receipt(
    lease_id: LeaseId,
    unit_id: WorkUnitId,
    failure: Failure | None,
    ending: LeaseEnding | None,
    detail: str,
    energy_mwh: int,
) -> SendReceipt:
    return SendReceipt(lease_id, unit_id, failure, ending, detail, 0, 0, 0, 0, energy_mwh, 0, b"")


class ReceiptBook:
    """Receipts in the order in which they were written."""

    def __init__(self, receipts: list[SendReceipt] | None = None) -> None:
        self._receipts: dict[_Key, SendReceipt] = {}
        for receipt in receipts or ():
            self.write(receipt)

    def write(self, receipt: SendReceipt) -> SendReceipt:
        """Keep a receipt; a later one for the same attempt takes its place."""
        self._receipts[receipt.lease_id, receipt.unit_id] = receipt
        return receipt

    def acknowledge(self, lease_id: LeaseId, unit_id: WorkUnitId) -> ForgetReceipt | None:
        """Let a receipt go; None when it went before."""
        if self._receipts.pop((lease_id, unit_id), None) is None:
            return None
        return ForgetReceipt(lease_id, unit_id)

    def all(self) -> list[SendReceipt]:
        """Every receipt not yet acknowledged."""
        return list(self._receipts.values())

    def units_handed_in(self) -> dict[LeaseId, list[WorkUnitId]]:
        """The attempts, by lease, that wait for their acknowledgement."""
        units: dict[LeaseId, list[WorkUnitId]] = {}
        for lease_id, unit_id in self._receipts:
            if unit_id != WHOLE_LEASE:
                units.setdefault(lease_id, []).append(unit_id)
        return units
