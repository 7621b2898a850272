"""Live inference over HTTP: chats, completions and embeddings."""

from typing import Any, Final

import msgspec
from litestar import Request, Router, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ASGIApp

from terafleet.control.gateway.auth import caller_of, context_of
from terafleet.control.gateway.bodies import whole_body
from terafleet.control.gateway.live.answers import Asked, LiveAnswer
from terafleet.control.gateway.live.asked_model import asked_model
from terafleet.control.gateway.live.requests import checked_request
from terafleet.control.gateway.live.sessions import LiveRequest
from terafleet.core.ids import CustomerId
from terafleet.protocol.live_answers import (
    EXPLAIN_HEADER,
    ChatCompletion,
    Completion,
    Embeddings,
)
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS

EXPLAIN: Final = "1"

AnyRequest = Request[Any, Any, Any]


def _whole(answer: type[msgspec.Struct]) -> dict[int, ResponseSpec]:
    """For the description of the gateway: what is answered if it is no stream."""
    return {200: ResponseSpec(answer, generate_examples=False, description="The answer.")}


@post(CHAT_COMPLETIONS, status_code=200, responses=_whole(ChatCompletion))
async def create_chat_completion(request: AnyRequest) -> ASGIApp:
    """Go on with a chat; whole, or in events as it comes."""
    return await _answer(CHAT_COMPLETIONS, request)


@post(COMPLETIONS, status_code=200, responses=_whole(Completion))
async def create_completion(request: AnyRequest) -> ASGIApp:
    """Go on with a text; whole, or in events as it comes."""
    return await _answer(COMPLETIONS, request)


@post(EMBEDDINGS, status_code=200, responses=_whole(Embeddings))
async def create_embeddings(request: AnyRequest) -> ASGIApp:
    """Turn texts into vectors."""
    return await _answer(EMBEDDINGS, request)


async def _answer(endpoint: str, request: AnyRequest) -> ASGIApp:
    # Asked for here, before anything of the body is read: as a guard and as dependencies of the
    # routes they would take a third of a request's time.
    caller, context = caller_of(request), context_of(request)
    body = await whole_body(request)
    checked = checked_request(endpoint, body)
    wanted = LiveRequest(
        customer_id=CustomerId(caller.customer_id),
        model_id=asked_model(context.catalogue, checked.model, endpoint),
        endpoint=endpoint,
        body=checked.body,
        tokens=checked.tokens,
        can_move=checked.can_move,
        # Before it is whole nothing of it is told.
        can_restart=not checked.is_streamed,
    )
    explains = request.headers.get(EXPLAIN_HEADER) == EXPLAIN
    return LiveAnswer(context, Asked(wanted, checked, explains))


live_router = Router(
    "/",
    route_handlers=[create_chat_completion, create_completion, create_embeddings],
    tags=["live"],
)
