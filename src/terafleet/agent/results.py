"""Gathers what attempts of a lease came to, so that one receipt hands in what came together."""

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from terafleet.core.guard_events import AnyGuardEvent, AttemptsFinished
from terafleet.core.ids import LeaseId, ReceiptId, WorkUnitId, large_output_name, output_name
from terafleet.core.work import AttemptResult
from terafleet.engine.clock import Clock
from terafleet.engine.ports import Blob
from terafleet.protocol.addresses import address_below
from terafleet.protocol.agent import INLINE_BYTES_MAX
from terafleet.protocol.parcel import ENTRY_BYTES_MAX, PARCEL_BYTES_MIN, pack

Submit = Callable[[AnyGuardEvent, Sequence[Blob]], bool]


def address_name(lease_id: LeaseId, receipt_id: ReceiptId) -> str:
    """The blob with the address to put a large output to."""
    return f"{output_name(lease_id, receipt_id)}/address"


class ResultHooks(msgspec.Struct, frozen=True):
    """Where results go; `expect_large` hears of each large output before it is submitted."""

    submit: Submit
    expect_large: Callable[[LeaseId, ReceiptId], None]
    clock: Clock


class Results:
    """The results of one lease that the guard has not heard of yet."""

    __slots__ = ("_address", "_around", "_lease_id", "_outputs", "_results", "_size")

    def __init__(self, lease_id: LeaseId, outputs_address: str, around: ResultHooks) -> None:
        """`outputs_address` is the folder for outputs that are too large to ride in a receipt."""
        self._lease_id = lease_id
        self._address = outputs_address
        self._around = around
        self._results: list[AttemptResult] = []
        self._outputs: list[tuple[WorkUnitId, bytes]] = []
        self._size = PARCEL_BYTES_MIN

    def add(self, result: AttemptResult, output: bytes) -> None:
        """Take a result; it is told by the next `tell`, or before if there is much."""
        size = ENTRY_BYTES_MAX + len(output)
        if self._size + size > INLINE_BYTES_MAX:
            self.tell()
        if PARCEL_BYTES_MIN + size > INLINE_BYTES_MAX:
            self._tell_large(result, output)
            return
        self._results.append(result)
        self._outputs.append((result.unit_id, output))
        self._size += size

    def tell(self) -> None:
        """Let the guard know what is gathered, if anything is."""
        if not self._results:
            return
        parcel = pack(self._outputs)
        self._around.submit(self._event(tuple(self._results), parcel, parcel), ())
        self._results.clear()
        self._outputs.clear()
        self._size = PARCEL_BYTES_MIN

    def _tell_large(self, result: AttemptResult, output: bytes) -> None:
        """An output that is put to an address; after a restart only the record knows which."""
        receipt = (self._lease_id, ReceiptId(result.unit_id))
        self._around.expect_large(*receipt)
        address = address_below(self._address, large_output_name(self._lease_id, result.unit_id))
        blobs = (
            Blob(output_name(*receipt), output),
            Blob(address_name(*receipt), address.encode()),
        )
        self._around.submit(self._event((result,), output, b""), blobs)

    def _event(
        self, results: tuple[AttemptResult, ...], body: bytes, parcel: bytes
    ) -> AttemptsFinished:
        digest = hashlib.sha256(body).digest()
        return AttemptsFinished(
            self._around.clock.now_ms(), self._lease_id, results, digest, parcel
        )
