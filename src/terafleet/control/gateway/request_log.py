"""Gives every request an id and writes one line about it; knows no bodies and no secrets."""

import time
from collections.abc import Callable

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from terafleet.control.gateway.auth import known_key_id

REQUEST_ID_HEADER = b"x-request-id"
PATH_CHARACTERS_MAX = 200

_log = structlog.get_logger()


class RequestLog:
    """Wraps the whole application, so that no answer of it goes without an id and a line.

    The query is left out of the line: the signature of a signed address is in it.
    """

    def __init__(self, app: ASGIApp, new_id: Callable[[], str]) -> None:
        """`new_id` makes the ids; what a client sends as an id is not taken over."""
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of the server."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        request_id = f"req_{self._new_id()}"
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                id_header = (REQUEST_ID_HEADER, request_id.encode())
                message["headers"] = [*message["headers"], id_header]
            await send(message)

        started_ns = time.perf_counter_ns()
        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                await self._app(scope, receive, send_with_id)
        finally:
            _log.info(
                "request",
                request_id=request_id,
                method=scope["method"][:20],
                path=scope["path"][:PATH_CHARACTERS_MAX],
                status=status,
                duration_ms=round((time.perf_counter_ns() - started_ns) / 1e6, 2),
                key_id=known_key_id(scope["state"]),
            )
