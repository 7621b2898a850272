"""Says what this gateway is and whether it can do its work."""

import asyncio
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Request, get
from litestar.di import NamedDependency

from terafleet.control.gateway.context import GatewayContext, ShardUnavailable
from terafleet.control.gateway.errors import ApiError
from terafleet.protocol.shard import GetStatus, ShardStatus

VERSION = version("terafleet")

SHARD_PATIENCE_S = 2.0
"""A shard that needs longer to say how it is does not count as well."""

KEPT_MS = 1_000
"""Anybody may ask; the shard is asked at most so often."""


class About(msgspec.Struct, frozen=True):
    """What answers here, and where its description is."""

    name: str
    version: str
    description: str
    health: str


class Health(msgspec.Struct, frozen=True):
    """The gateway reaches the bus, and the shard answers."""

    status: str


async def shard_status(context: GatewayContext) -> ShardStatus:
    """How the shard is. Raises ShardUnavailable when it does not answer soon."""
    try:
        async with asyncio.timeout(SHARD_PATIENCE_S):
            return await context.ask(GetStatus(), ShardStatus)
    except TimeoutError as error:
        message = f"the shard did not answer within {SHARD_PATIENCE_S:g} s"
        raise ShardUnavailable(message) from error


class HealthCheck:
    """Remembers for a moment what the shard said; questions at the same time share one answer."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._asked_ms = -KEPT_MS
        self._fault = ""

    async def fault(self, context: GatewayContext) -> str:
        """What keeps the gateway from working, or empty."""
        async with self._lock:
            if abs(context.now_ms() - self._asked_ms) >= KEPT_MS:
                self._fault = await self._ask(context)
                self._asked_ms = context.now_ms()
            return self._fault

    async def _ask(self, context: GatewayContext) -> str:
        if not context.bus.is_connected:
            return "the bus is not connected"
        try:
            await shard_status(context)
        except ShardUnavailable as error:
            return str(error) or "the shard does not answer"
        return ""


HEALTH_KEY = "health"
"""Where the application keeps its HealthCheck."""


@get("/healthz", tags=["health"])
async def get_health(
    request: Request[Any, Any, Any], context: NamedDependency[GatewayContext]
) -> Health:
    """200 when work can be done here, else 503 with the reason."""
    check = request.app.state[HEALTH_KEY]
    assert isinstance(check, HealthCheck)
    fault = await check.fault(context)
    if fault:
        raise ApiError("shard_unavailable", fault.capitalize() + ".")
    return Health("ok")


@get("/", tags=["health"], sync_to_thread=False)
def get_about() -> About:
    """What this is."""
    return About("terafleet", VERSION, "/openapi.json", "/healthz")
