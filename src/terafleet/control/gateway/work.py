"""Does what shards ask of gateways: cutting, assembling and forgetting batches.

The gateways form one group, and each piece of work comes to one of them; one that is lost is
asked for again by its shard.
"""

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from terafleet.bus.ports import Message, Subscription
from terafleet.control.gateway.assembling import handle_assemble, handle_forget
from terafleet.control.gateway.context import GatewayContext, ShardRefused, ShardUnavailable
from terafleet.control.gateway.cutting import handle_cut
from terafleet.control.ports import CatalogueFull, ObjectsFull
from terafleet.protocol.shard import (
    GATEWAY_GROUP,
    GATEWAY_WORK_SUBJECT,
    WORK_DECODER,
    AnyGatewayWork,
    Assemble,
    Cut,
    Forget,
)

RETRY_MS = (200, 1_000, 5_000)
"""How long to wait before each next try; the shard asks again after the last."""

AT_ONCE_MAX = 2
"""How much is done at once: each holds some megabytes, and all share one event loop."""

_log = structlog.get_logger()

_Key = tuple[str, str]


class GatewayWorkHandler:
    """Takes work of shards from the bus and does a few of them at a time."""

    def __init__(
        self,
        context: GatewayContext,
        retry_ms: Sequence[int] = RETRY_MS,
        at_once_max: int = AT_ONCE_MAX,
    ) -> None:
        """Takes nothing before `start`."""
        self._context = context
        self._retry_ms = tuple(retry_ms)
        self._turns = asyncio.Semaphore(at_once_max)
        self._doing: dict[_Key, asyncio.Task[None]] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Take work from here on. Raises BusRefused if the bus does not allow it."""
        self._subscription = await self._context.bus.subscribe(
            GATEWAY_WORK_SUBJECT, self._receive, GATEWAY_GROUP
        )

    async def finish(self) -> None:
        """Wait until nothing is being done."""
        while self._doing:
            await asyncio.wait(list(self._doing.values()))

    async def close(self) -> None:
        """Take no more, and leave what is being done to another gateway."""
        if self._subscription is not None:
            await self._subscription.end()
        doing = list(self._doing.values())
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)

    def _receive(self, message: Message) -> None:
        try:
            work = WORK_DECODER.decode(message.body)
        except msgspec.DecodeError as error:
            _log.error("gateway_work_unreadable", cause=str(error))
            return
        key = (type(work).__name__, work.batch_id)
        if key in self._doing:
            return
        earlier = [task for (_, batch_id), task in self._doing.items() if batch_id == work.batch_id]
        task = asyncio.get_running_loop().create_task(self._do(work, earlier))
        self._doing[key] = task
        task.add_done_callback(lambda _: self._done(key))

    def _done(self, key: _Key) -> None:
        task = self._doing.pop(key)
        if task.cancelled():
            return
        fault = task.exception()
        if fault is not None:
            # One batch that meets a bug of ours must not take the gateway from all the others.
            _log.error("gateway_work_broke", kind=key[0], batch_id=key[1], exc_info=fault)

    async def _do(self, work: AnyGatewayWork, earlier: Sequence[asyncio.Task[None]]) -> None:
        """Do one piece of work after what came before it for the same batch.

        A batch that ends while it is being cut is forgotten when the cut is over, not in its midst.
        """
        if earlier:
            await asyncio.wait(earlier)
        async with self._turns:
            for wait_ms in (*self._retry_ms, None):
                fault = await self._try(work)
                if not fault:
                    return
                kind = type(work).__name__
                _log.warning("gateway_work_failed", kind=kind, batch_id=work.batch_id, cause=fault)
                if wait_ms is not None:
                    await asyncio.sleep(wait_ms / 1_000)

    async def _try(self, work: AnyGatewayWork) -> str:
        """Do it; what stood in the way, or empty."""
        try:
            match work:
                case Cut():
                    await handle_cut(self._context, work)
                case Assemble():
                    await handle_assemble(self._context, work)
                case Forget():
                    await handle_forget(self._context, work)
        except (ShardUnavailable, ShardRefused, ObjectsFull, CatalogueFull) as fault:
            return f"{type(fault).__name__}: {fault}"
        return ""
