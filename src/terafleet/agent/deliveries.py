"""Hands in what attempts came to: small outputs in the receipt, large ones over HTTP before it."""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.attempts import address_name
from terafleet.agent.deeds import Spawn
from terafleet.agent.gateway import Gateway, GatewayFault
from terafleet.agent.waking import Sleep
from terafleet.core.guard_effects import SendReceipt
from terafleet.core.ids import LeaseId, WorkUnitId, output_name
from terafleet.core.reasons import Failure
from terafleet.engine.ports import Store
from terafleet.protocol.agent import INLINE_BYTES_MAX, Receipt

WHOLE_LEASE = -1
PUTS_MAX = 2
RETRY_S_MIN = 1.0
RETRY_S_MAX = 60.0

Key = tuple[LeaseId, WorkUnitId]

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
        self._small: dict[Key, bytes | None] = {}
        """The small outputs of this process; None once it is in the record and handed in."""
        self._putting: dict[Key, SendReceipt] = {}
        self._puts = asyncio.Semaphore(PUTS_MAX)

    def keep(self, lease_id: LeaseId, unit_id: WorkUnitId, payload: bytes) -> None:
        """Have a small output at hand, so that its receipt need not wait for the record."""
        if len(payload) <= INLINE_BYTES_MAX:
            self._small[lease_id, unit_id] = payload

    def send(self, effects: Sequence[SendReceipt]) -> None:
        """Hand in what one group of events brought, those together that are ready."""
        ready = []
        for effect in effects:
            receipt = self._ready(effect)
            if receipt is not None:
                ready.append(receipt)
            elif (effect.lease_id, effect.unit_id) not in self._putting:
                self._putting[effect.lease_id, effect.unit_id] = effect
                self._spawn(self._put(effect))
        if ready:
            self._hand_in(ready)

    def forget(self, lease_id: LeaseId, unit_id: WorkUnitId) -> None:
        """A receipt is acknowledged, or not wanted: its output may go."""
        key = (lease_id, unit_id)
        self._putting.pop(key, None)
        if key in self._small:
            del self._small[key]
            self._discard((output_name(lease_id, unit_id),))
        elif unit_id != WHOLE_LEASE:
            self._discard((output_name(lease_id, unit_id), address_name(lease_id, unit_id)))

    def _ready(self, effect: SendReceipt) -> Receipt | None:
        """The receipt if it can leave at once; None if its output must be put first."""
        if effect.failure is not None or effect.ending is not None:
            return _receipt(effect, b"")
        key = (effect.lease_id, effect.unit_id)
        payload = self._small.get(key)
        if payload is None:
            payload = self._store.blob(output_name(*key))
        else:
            self._small[key] = None
        if payload is None:
            return _spoilt(effect, "the output is not in the record")
        return _receipt(effect, payload) if len(payload) <= INLINE_BYTES_MAX else None

    async def _put(self, effect: SendReceipt) -> None:
        """Put a large output, however long the way is blocked, and hand in its receipt."""
        key = (effect.lease_id, effect.unit_id)
        failures = 0
        while self._putting.get(key) is effect:
            async with self._puts:
                fault = await self._put_once(effect)
            if fault is None or not fault.is_passing:
                break
            log.info("output_not_put", lease_id=key[0], unit_id=key[1], cause=fault.code)
            await self._sleep(min(RETRY_S_MAX, RETRY_S_MIN * 2 ** min(failures, 16)))
            failures += 1
        if self._putting.get(key) is not effect:
            return
        del self._putting[key]
        if fault is None:
            self._hand_in((_receipt(effect, b""),))
        else:
            # There is no fresh address for it, and without the output the result is none.
            log.warning("output_lost", lease_id=key[0], unit_id=key[1], cause=fault.code)
            self._hand_in((_spoilt(effect, f"{fault.code}: {fault.detail}"),))

    async def _put_once(self, effect: SendReceipt) -> GatewayFault | None:
        address = self._store.blob(address_name(effect.lease_id, effect.unit_id))
        payload = self._store.blob(output_name(effect.lease_id, effect.unit_id))
        if address is None or payload is None:
            return GatewayFault("output_missing", "the output is not in the record")
        return await self._gateway.put(address.decode(), payload)


def _receipt(effect: SendReceipt, payload: bytes) -> Receipt:
    return Receipt(
        lease_id=effect.lease_id,
        unit_id=effect.unit_id,
        failure=effect.failure,
        ending=effect.ending,
        detail=effect.detail,
        answers=effect.answers,
        answers_failed=effect.answers_failed,
        prompt_tokens=effect.prompt_tokens,
        completion_tokens=effect.completion_tokens,
        energy_mwh=effect.energy_mwh,
        runtime_ms=effect.runtime_ms,
        digest=effect.digest,
        payload=payload,
    )


def _spoilt(effect: SendReceipt, detail: str) -> Receipt:
    """The receipt of a result whose output can't be handed in."""
    return Receipt(
        lease_id=effect.lease_id,
        unit_id=effect.unit_id,
        failure=Failure.OUTPUT_INCOMPLETE,
        detail=detail,
        energy_mwh=effect.energy_mwh,
    )
