"""Who is calling: API keys, their roles, and the guards of routes."""

import re
from typing import Any

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.keys import sha256_of

CUSTOMER, OPERATOR = "customer", "operator"
ROLES = (CUSTOMER, OPERATOR)

CONTEXT_KEY = "context"
"""Where the application keeps the gateway's context."""

_CALLER_KEY = "caller"
_SECRET = re.compile(r"tf-[A-Za-z0-9_-]{43}")
_CHALLENGE = {"www-authenticate": "Bearer"}


class Caller(msgspec.Struct, frozen=True):
    """Who made a request: the API key, the customer that it speaks for, and its role."""

    key_id: str
    customer_id: str
    role: str


AnyConnection = ASGIConnection[Any, Any, Any, Any]


def context_of(connection: AnyConnection) -> GatewayContext:
    """The context of the gateway that got this request."""
    context = connection.app.state[CONTEXT_KEY]
    assert isinstance(context, GatewayContext)
    return context


def caller_of(connection: AnyConnection) -> Caller:
    """The holder of the request's API key. Raises ApiError when there is no valid one."""
    known = connection.scope["state"].get(_CALLER_KEY)
    if isinstance(known, Caller):
        return known
    caller = _look_up(context_of(connection), connection.headers.get("authorization", ""))
    connection.scope["state"][_CALLER_KEY] = caller
    return caller


def known_key_id(state: dict[str, Any]) -> str:
    """The id of the key of a request that has been let in, else empty; for the log."""
    caller = state.get(_CALLER_KEY)
    return caller.key_id if isinstance(caller, Caller) else ""


def provide_caller(request: Request[Any, Any, Any]) -> Caller:
    """The dependency `caller` of route handlers."""
    return caller_of(request)


def provide_context(request: Request[Any, Any, Any]) -> GatewayContext:
    """The dependency `context` of route handlers."""
    return context_of(request)


# Guards are coroutines, since litestar calls a plain function in a thread.


async def require_key(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Guard: let in any valid key, before anything of the body is read."""
    caller_of(connection)


async def require_operator(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Guard: let in operators only."""
    if caller_of(connection).role != OPERATOR:
        raise ApiError("operator_only", "This needs the API key of an operator.")


def _look_up(context: GatewayContext, authorization: str) -> Caller:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        message = "There is no API key; send it as Authorization: Bearer tf-…"
        raise ApiError("invalid_api_key", message, headers=_CHALLENGE)
    if _SECRET.fullmatch(secret) is None:
        raise ApiError("invalid_api_key", "This is not an API key.", headers=_CHALLENGE)
    # Looking up the hash takes the same way for every wrong secret: how long it takes tells
    # something of the hash at most, and nobody can choose a secret by its hash.
    row = context.catalogue.key_by_secret(sha256_of(secret))
    if row is None:
        raise ApiError("invalid_api_key", "This API key is not known.", headers=_CHALLENGE)
    if row.revoked_ms:
        raise ApiError("revoked_api_key", "This API key has been revoked.", headers=_CHALLENGE)
    return Caller(row.key_id, row.customer_id, row.role)
