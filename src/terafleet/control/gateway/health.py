"""Says what this gateway is and whether it can do its work."""

import asyncio
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import HttpMethod, Request, get, route
from litestar.di import NamedDependency

from terafleet.control.gateway.canary import Canary
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


class Ready(msgspec.Struct, frozen=True):
    """The gateway reaches the bus, and the shard answers."""

    status: str


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """The gateway is ready, and the last canary went through: so far, so quickly, so long ago.

    `shallow` says why it went no deeper than to the shard, `session_age_ms` how long ago one last
    came back from a car. A gateway without canaries has only the status.
    """

    status: str
    depth: str = ""
    shallow: str = ""
    canary_ms: int | None = None
    canary_age_ms: int | None = None
    session_age_ms: int | None = None


class Watch(msgspec.Struct, frozen=True):
    """What looks after a gateway: its canary, and whether anybody may read its metrics."""

    canary: Canary | None = None
    is_metrics_open: bool = False


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

    def __init__(self, canary: Canary | None = None) -> None:
        self.canary = canary
        self._lock = asyncio.Lock()
        self._asked_ms = -KEPT_MS
        self._said: ShardStatus | str = ""

    async def shard(self, context: GatewayContext) -> ShardStatus | str:
        """How the shard is, or what keeps it from saying so."""
        async with self._lock:
            if abs(context.now_ms() - self._asked_ms) >= KEPT_MS:
                self._said = await self._ask(context)
                self._asked_ms = context.now_ms()
            return self._said

    async def health(self, context: GatewayContext) -> Health:
        """How the last canary went. Raises ApiError with the reason where all is not well."""
        await self.check_ready(context)
        canary = self.canary
        if canary is None:
            return Health("ok")
        fault = canary.fault()
        if fault or canary.last is None:
            raise _unhealthy(fault)
        last = canary.last
        ages_ms = (canary.age_ms, canary.session_age_ms)
        return Health("ok", last.depth, last.shallow, last.took_ms, *ages_ms)

    async def check_ready(self, context: GatewayContext) -> None:
        """Raises ApiError with what keeps the gateway from working."""
        said = await self.shard(context)
        if isinstance(said, str):
            raise _unhealthy(said)

    async def _ask(self, context: GatewayContext) -> ShardStatus | str:
        if not context.bus.is_connected:
            return "the bus is not connected"
        try:
            return await shard_status(context)
        except ShardUnavailable as error:
            return str(error) or "the shard does not answer"


def _unhealthy(fault: str) -> ApiError:
    return ApiError("shard_unavailable", f"{fault[:1].upper()}{fault[1:]}.")


_METHODS = [HttpMethod.GET, HttpMethod.HEAD]
"""Some monitors ask for the head only."""

HEALTH_KEY = "health"
"""Where the application keeps its HealthCheck."""


def health_check_of(request: Request[Any, Any, Any]) -> HealthCheck:
    """The check of the gateway that got a request."""
    check = request.app.state[HEALTH_KEY]
    assert isinstance(check, HealthCheck)
    return check


@route("/healthz", http_method=_METHODS, tags=["health"])
async def get_health(
    request: Request[Any, Any, Any], context: NamedDependency[GatewayContext]
) -> Health:
    """200 when the last canary has gone the whole way, else 503 with the reason."""
    return await health_check_of(request).health(context)


@route("/readyz", http_method=_METHODS, tags=["health"])
async def get_ready(
    request: Request[Any, Any, Any], context: NamedDependency[GatewayContext]
) -> Ready:
    """200 when the gateway reaches the bus and the shard answers, else 503 with the reason."""
    await health_check_of(request).check_ready(context)
    return Ready("ok")


@get("/", tags=["health"], sync_to_thread=False)
def get_about() -> About:
    """What this is."""
    return About("terafleet", VERSION, "/openapi.json", "/healthz")
