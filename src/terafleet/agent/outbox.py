"""The receipts that the control plane has not acknowledged, and when each goes out again."""

from collections.abc import Iterable, Iterator

import msgspec

from terafleet.core.ids import LeaseId, ReceiptId
from terafleet.protocol.agent import MESSAGE_BYTES_MAX, Receipt

RESEND_MS = 10_000

RECEIPT_BYTES = 128
"""What a receipt takes in a message beside its results, payload and detail, at most."""
RESULT_BYTES = 80
"""What a result takes, at most: seven numbers of up to nine bytes."""
BATCH_BYTES_MAX = MESSAGE_BYTES_MAX - 1_024

Key = tuple[LeaseId, ReceiptId]


class _Waiting(msgspec.Struct, gc=False):
    receipt: Receipt
    sent_ms: int


class Outbox:
    """Receipts by name; the one that was sent longest ago stands first."""

    def __init__(self) -> None:
        self._waiting: dict[Key, _Waiting] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def put(self, receipts: Iterable[Receipt], sent_ms: int) -> None:
        """Keep receipts that go out at this moment; a later one takes an earlier one's place."""
        waiting = self._waiting
        for receipt in receipts:
            key = (receipt.lease_id, receipt.receipt_id)
            waiting.pop(key, None)
            waiting[key] = _Waiting(receipt, sent_ms)

    def forget(self, receipts: Iterable[Key]) -> None:
        """Receipts need not go out again."""
        for key in receipts:
            self._waiting.pop(key, None)

    def due_ms(self) -> int | None:
        """When the first one goes out again."""
        first = next(iter(self._waiting.values()), None)
        return None if first is None else first.sent_ms + RESEND_MS

    def take_due(self, now_ms: int) -> list[Receipt]:
        """Those that go out again at this moment."""
        due: list[Receipt] = []
        for waiting in self._waiting.values():
            if waiting.sent_ms + RESEND_MS > now_ms:
                break
            due.append(waiting.receipt)
        self.put(due, now_ms)
        return due

    def take_all(self, now_ms: int) -> list[Receipt]:
        """All of them, to go out at this moment."""
        receipts = [waiting.receipt for waiting in self._waiting.values()]
        self.put(receipts, now_ms)
        return receipts


def in_batches(receipts: Iterable[Receipt]) -> Iterator[tuple[Receipt, ...]]:
    """As few messages as the greatest message allows."""
    batch: list[Receipt] = []
    size = 0
    for receipt in receipts:
        # A character takes up to four bytes.
        size_next = RECEIPT_BYTES + len(receipt.payload) + 4 * len(receipt.detail)
        size_next += RESULT_BYTES * len(receipt.results)
        if batch and size + size_next > BATCH_BYTES_MAX:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(receipt)
        size += size_next
    if batch:
        yield tuple(batch)
