"""Reads the body of a request in pieces, and not for ever."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from litestar import Request

from terafleet.control.gateway.errors import ApiError

SILENCE_S = 60.0
"""A client that sends nothing for so long has gone, or wants to keep us waiting."""


async def body_chunks(
    request: Request[Any, Any, Any], silence_s: float = SILENCE_S
) -> AsyncIterator[bytes]:
    """The body as it comes. Raises ApiError when it stops coming; its size is the route's limit."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(silence_s):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise _missing() from error
        if chunk:
            yield chunk


async def whole_body(request: Request[Any, Any, Any], silence_s: float = SILENCE_S) -> bytes:
    """The body at once. Raises ApiError when it stops coming; its size is the route's limit."""
    loop = asyncio.get_running_loop()
    chunks: list[bytes] = []
    try:
        # One timer, set anew only when a body comes in pieces: most have come as a whole.
        async with asyncio.timeout(silence_s) as patience:
            async for chunk in request.stream():
                if chunks:
                    patience.reschedule(loop.time() + silence_s)
                chunks.append(chunk)
    except TimeoutError as error:
        raise _missing() from error
    return b"".join(chunks)


def _missing() -> ApiError:
    return ApiError("invalid_request", "The body of the request did not come.")
