"""Hands in what attempts came to: small outputs in the receipt, large ones over HTTP before it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.deeds import Spawn
from terafleet.agent.gateway import Gateway, GatewayFault
from terafleet.agent.results import address_name
from terafleet.agent.waking import Sleep
from terafleet.core.guard_effects import SendReceipt
from terafleet.core.ids import LeaseId, ReceiptId, output_name
from terafleet.core.reasons import Failure
from terafleet.engine.ports import Store
from terafleet.protocol.agent import Receipt

PUTS_MAX = 2
RETRY_S_MIN = 1.0
RETRY_S_MAX = 60.0

Key = tuple[LeaseId, ReceiptId]

log: FilteringBoundLogger = structlog.get_logger()


class Deliveries:
    """Receipts on their way out.

    `hand_in` gets those that are ready to be sent, `discard` the names of blobs that may go.
    """

    def __init__(
        self,
        store: Store,
        gateway: Gateway,
        hand_in: Callable[[Sequence[Receipt]], None],
        discard: Callable[[Sequence[str]], None],
        spawn: Spawn,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._hand_in = hand_in
        self._discard = discard
        self._spawn = spawn
        self._sleep = sleep
        self._large: set[Key] = set()
        """Receipts whose output is stored beside them."""
        self._putting: dict[Key, SendReceipt] = {}
        self._puts = asyncio.Semaphore(PUTS_MAX)

    def expect_large(self, lease_id: LeaseId, receipt_id: ReceiptId) -> None:
        """An output is about to be stored that is too large to ride in its receipt."""
        self._large.add((lease_id, receipt_id))

    def send(self, effects: Sequence[SendReceipt]) -> None:
        """Hand in what one group of events brought, those together that are ready."""
        ready = []
        for effect in effects:
            if effect.parcel or not effect.results:
                ready.append(_receipt(effect))
            else:
                self._begin_put(effect)
        if ready:
            self._hand_in(ready)

    def forget(self, receipts: Iterable[Key]) -> None:
        """Receipts are acknowledged, or not wanted: their outputs may go."""
        names: list[str] = []
        for key in receipts:
            if key in self._large:
                self._large.discard(key)
                self._putting.pop(key, None)
                names += (output_name(*key), address_name(*key))
        if names:
            self._discard(names)

    def _begin_put(self, effect: SendReceipt) -> None:
        key = (effect.lease_id, effect.receipt_id)
        self._large.add(key)
        if key not in self._putting:
            self._putting[key] = effect
            self._spawn(self._put(effect))

    async def _put(self, effect: SendReceipt) -> None:
        """Put a large output, however long the way is blocked, and hand in its receipt."""
        key = (effect.lease_id, effect.receipt_id)
        failures = 0
        while self._putting.get(key) is effect:
            async with self._puts:
                fault = await self._put_once(effect)
            if fault is None or not fault.is_passing:
                break
            log.info("output_not_put", lease_id=key[0], receipt_id=key[1], cause=fault.code)
            await self._sleep(min(RETRY_S_MAX, RETRY_S_MIN * 2 ** min(failures, 16)))
            failures += 1
        if self._putting.get(key) is not effect:
            return
        del self._putting[key]
        if fault is None:
            self._hand_in((_receipt(effect),))
        else:
            # There is no fresh address for it, and without the output the result is none.
            log.warning("output_lost", lease_id=key[0], receipt_id=key[1], cause=fault.code)
            self._hand_in((_spoilt(effect, f"{fault.code}: {fault.detail}"),))

    async def _put_once(self, effect: SendReceipt) -> GatewayFault | None:
        key = (effect.lease_id, effect.receipt_id)
        address = self._store.blob(address_name(*key))
        payload = self._store.blob(output_name(*key))
        if address is None or payload is None:
            return GatewayFault("output_missing", "the output is not in the record")
        return await self._gateway.put(address.decode(), payload)


def _receipt(effect: SendReceipt) -> Receipt:
    return Receipt(
        lease_id=effect.lease_id,
        receipt_id=effect.receipt_id,
        failure=effect.failure,
        ending=effect.ending,
        detail=effect.detail,
        energy_mwh=effect.energy_mwh,
        results=effect.results,
        digest=effect.digest,
        payload=effect.parcel,
        asked_micro=effect.asked_micro,
    )


def _spoilt(effect: SendReceipt, detail: str) -> Receipt:
    """The receipt of a result whose output can't be handed in."""
    return Receipt(
        lease_id=effect.lease_id,
        receipt_id=effect.receipt_id,
        failure=Failure.OUTPUT_INCOMPLETE,
        detail=detail,
        energy_mwh=sum(result.energy_mwh for result in effect.results),
    )
