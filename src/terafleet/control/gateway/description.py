"""The OpenAPI description of the gateway, with the error form that its routes really answer in."""

from typing import Any

import msgspec
from litestar import Request, Response, Router, get
from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from terafleet.control.gateway.live.requests import LiveEmbeddings
from terafleet.protocol.errors import ErrorReply
from terafleet.protocol.live import LiveChat, LiveCompletion
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

STREAMED = (CHAT_COMPLETIONS, COMPLETIONS)


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
    """The generated description, with `ErrorReply` as what every failed request gets."""
    (_, *bodies), components = msgspec.json.schema_components(
        [ErrorReply, *BODIES.values()], ref_template="#/components/schemas/{name}"
    )
    schema["components"].setdefault("schemas", {}).update(components)
    for path, body in zip(BODIES, bodies, strict=True):
        content = {"application/json": {"schema": body}}
        schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
    for path in STREAMED:
        content = schema["paths"][path]["post"]["responses"]["200"]["content"]
        content["text/event-stream"] = {"schema": {"type": "string"}}
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


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def get_description(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The description as JSON, made at the first request."""
    state = request.app.state
    if "description" not in state:
        schema = described(request.app.openapi_schema.to_schema())
        state["description"] = msgspec.json.encode(schema)
    return Response(state["description"], media_type="application/json")
