"""The OpenAPI description of the gateway, with the error form that its routes really answer in."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get
from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from msgspec import Meta

from terafleet.control.gateway.live.requests import LiveEmbeddings
from terafleet.control.gateway.metrics import METRICS_PATH
from terafleet.control.gateway.parameters import Text, Texts, TokenIdLists, TokenIds
from terafleet.protocol.errors import ErrorReply
from terafleet.protocol.live import CHOICES_MAX, LiveChat, LiveCompletion
from terafleet.protocol.live_answers import DONE, EXPLAIN_HEADER, ChatChunk, Completion
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS

FAILED_MIN = 400
"""From this HTTP status on a request has failed."""

API_KEY = "api_key"
"""The security scheme of routes that need an API key."""

NEEDS_KEY: list[dict[str, list[str]]] = [{API_KEY: []}]


BODIES: dict[str, type[msgspec.Struct]] = {
    CHAT_COMPLETIONS: LiveChat,
    COMPLETIONS: LiveCompletion,
    EMBEDDINGS: LiveEmbeddings,
}
"""What routes are sent that read their bodies themselves."""

_Prompts = Annotated[list[str | TokenIds], Meta(min_length=1, max_length=CHOICES_MAX)]

INPUTS: dict[tuple[str, str], tuple[Any, ...]] = {
    ("LiveCompletion", "prompt"): (str, TokenIds, _Prompts),
    ("LiveEmbeddings", "input"): (Text, Texts, TokenIds, TokenIdLists),
}
"""What fields may be for which one type can't say it."""

STREAMED: dict[str, type[msgspec.Struct]] = {CHAT_COMPLETIONS: ChatChunk, COMPLETIONS: Completion}
"""What the events of a stream hold."""

EXPLAIN: dict[str, Any] = {
    "name": EXPLAIN_HEADER,
    "in": "header",
    "required": False,
    "description": "With 1 the answer tells what went on behind it, in its field terafleet.",
    "schema": {"type": "string"},
}


async def _nothing_here(_: ASGIConnection[Any, Any, Any, Any], __: BaseRouteHandler) -> None:
    raise NotFoundException


def openapi_config(version: str) -> OpenAPIConfig:
    """What litestar needs to describe the routes; its own pages are shut, for their form."""
    return OpenAPIConfig(
        title="Terafleet",
        version=version,
        description="AI work on parked electric cars, and the operation of the fleet.",
        use_handler_docstrings=True,
        render_plugins=[JsonRenderPlugin()],
        openapi_router=Router(
            "/schema", route_handlers=[], guards=[_nothing_here], include_in_schema=False
        ),
        components=Components(
            security_schemes={API_KEY: SecurityScheme(type="http", scheme="bearer")}
        ),
    )


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """The generated description, with live inference, and `ErrorReply` for all that fails."""
    _describe_live(schema)
    # From this computer without a key, from elsewhere with an operator's.
    schema["paths"][METRICS_PATH]["get"]["security"] = [{}, *NEEDS_KEY]
    failed = {
        "description": "The request failed; the code says why.",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}},
        },
    }
    for operations in schema["paths"].values():
        for operation in operations.values():
            responses = operation.get("responses", {})
            for status in [status for status in responses if int(status) >= FAILED_MIN]:
                del responses[status]
            responses["default"] = failed
            for parameter in operation.get("parameters", []):
                # Litestar calls a part of a path with slashes in it a URI, which it is not.
                parameter["schema"].pop("format", None)
    return schema


def _describe_live(schema: dict[str, Any]) -> None:
    """What the routes of live inference read and write by themselves."""
    (_, _, *bodies), components = _schemas(ErrorReply, ChatChunk, *BODIES.values())
    for (name, field), kinds in INPUTS.items():
        choices, _ = _schemas(*kinds)
        components[name]["properties"][field] = {"anyOf": list(choices)}
    schema["components"].setdefault("schemas", {}).update(components)
    for path, body in zip(BODIES, bodies, strict=True):
        operation = schema["paths"][path]["post"]
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
        operation["parameters"] = [EXPLAIN]
    for path, chunk in STREAMED.items():
        content = schema["paths"][path]["post"]["responses"]["200"]["content"]
        content["text/event-stream"] = {"schema": _event(chunk)}


def _event(chunk: type[msgspec.Struct]) -> dict[str, Any]:
    """One server-sent event of a stream; a media type's schema is that of each of its events."""
    kinds: list[dict[str, Any]] = [{"const": DONE}]
    for held in (chunk, ErrorReply):
        (schema,), _ = _schemas(held)
        kinds.append({"contentMediaType": "application/json", "contentSchema": schema})
    return {
        "type": "object",
        "description": (
            "For requests with stream. The last event says that the answer is whole, or why it "
            "broke off."
        ),
        "properties": {"data": {"type": "string", "anyOf": kinds}},
        "required": ["data"],
    }


def _schemas(*kinds: Any) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    return msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def get_description(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The description as JSON, made at the first request."""
    state = request.app.state
    if "description" not in state:
        schema = described(request.app.openapi_schema.to_schema())
        state["description"] = msgspec.json.encode(schema)
    return Response(state["description"], media_type="application/json")
