"""What operators do over HTTP: keys, enrolment codes, status, stories; gathers all their routes."""

import re
import secrets
from typing import Annotated

from litestar import Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from terafleet.control.gateway.admin_models import MODEL_ROUTES
from terafleet.control.gateway.admin_vehicles import VEHICLE_ROUTES
from terafleet.control.gateway.auth import ROLES, Caller, require_operator
from terafleet.control.gateway.context import GatewayContext, ShardRefused, ShardUnavailable
from terafleet.control.gateway.description import NEEDS_KEY
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.health import VERSION, shard_status
from terafleet.control.gateway.keys import (
    CODE_RANDOM_BYTES,
    KEY_RANDOM_BYTES,
    code_row,
    enrolment_code,
    key_row,
    key_secret,
)
from terafleet.control.ports import KeyRow
from terafleet.core.units import MS_PER_S
from terafleet.protocol.admin import (
    CODES_PATH,
    KEYS_PATH,
    STATUS_PATH,
    STORY_PATH,
    CodeCreate,
    CodeCreated,
    KeyCreate,
    KeyCreated,
    KeyList,
    KeyView,
    Status,
    StoryPage,
)
from terafleet.protocol.shard import GetStory, ShardStatus, Story

NAME_CHARACTERS_MAX = 100
CODE_VALID_S_MAX = 30 * 86_400
STORY_LINES_MAX = 1_000

_CUSTOMER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ABOUT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")


@post(KEYS_PATH)
async def create_key(
    data: JSONBody[KeyCreate], context: NamedDependency[GatewayContext]
) -> KeyCreated:
    """Make an API key; its secret is in this answer and nowhere else."""
    check_name(data.name)
    if data.role not in ROLES:
        raise ApiError("invalid_value", f"The role must be one of {', '.join(ROLES)}.", "role")
    customer_id = data.customer_id
    if customer_id is None:
        customer_id = f"cust_{context.new_id()}"
    elif _CUSTOMER_ID.fullmatch(customer_id) is None:
        message = "A customer's id has up to 64 letters, digits, and _ - after the first."
        raise ApiError("invalid_value", message, "customer_id")
    secret = key_secret(secrets.token_bytes(KEY_RANDOM_BYTES))
    key_id = f"key_{context.new_id()}"
    row = key_row(key_id, secret, data.name, data.role, customer_id, context.now_ms())
    context.catalogue.add_key(row)
    return KeyCreated(_key_view(row), secret)


@get(KEYS_PATH)
async def list_keys(context: NamedDependency[GatewayContext]) -> KeyList:
    """All API keys, also revoked ones, oldest first."""
    rows = context.catalogue.keys()
    return KeyList(tuple(_key_view(row) for row in rows))


@delete(f"{KEYS_PATH}/{{key_id:str}}", status_code=200)
async def revoke_key(
    key_id: FromPath[str], caller: NamedDependency[Caller], context: NamedDependency[GatewayContext]
) -> KeyView:
    """Revoke an API key; from the next request on it is refused."""
    if key_id == caller.key_id:
        message = "A key can't revoke itself, so that there is always an operator's key."
        raise ApiError("invalid_value", message, "key_id")
    context.catalogue.revoke_key(key_id, context.now_ms())
    rows = context.catalogue.keys()
    for row in rows:
        if row.key_id == key_id:
            return _key_view(row)
    raise ApiError("key_not_found", "There is no such API key.", "key_id")


@post(CODES_PATH)
async def create_code(
    data: JSONBody[CodeCreate], context: NamedDependency[GatewayContext]
) -> CodeCreated:
    """Make a one-time code with which one car can enrol."""
    if not 1 <= data.valid_s <= CODE_VALID_S_MAX:
        message = f"A code can be valid from 1 to {CODE_VALID_S_MAX} seconds."
        raise ApiError("invalid_value", message, "valid_s")
    code = enrolment_code(secrets.token_bytes(CODE_RANDOM_BYTES))
    now_ms = context.now_ms()
    row = code_row(code, now_ms, now_ms + data.valid_s * MS_PER_S)
    context.catalogue.add_code(row)
    return CodeCreated(code, row.expires_ms)


@get(STATUS_PATH)
async def get_status(context: NamedDependency[GatewayContext]) -> Status:
    """How the control plane is; also when its shard doesn't answer."""
    shard: ShardStatus | None
    try:
        shard = await shard_status(context)
    except (ShardUnavailable, ShardRefused):
        shard = None
    return Status(
        version=VERSION,
        is_bus_connected=context.bus.is_connected,
        shard=shard,
        objects_bytes_free=context.objects.bytes_free(),
        is_storage_full=context.is_storage_full(),
    )


@get(f"{STORY_PATH}/{{about:str}}")
async def get_story(
    about: FromPath[str],
    context: NamedDependency[GatewayContext],
    limit: Annotated[int, QueryParameter(ge=1, le=STORY_LINES_MAX)] = 100,
) -> StoryPage:
    """What the journal tells about a batch, a work unit, a lease, a car or a model."""
    if _ABOUT.fullmatch(about) is None:
        raise ApiError("invalid_value", "This is not the id of anything.", "about")
    story = await context.ask(GetStory(about, limit), Story)
    lines = sorted(story.lines, key=lambda line: line.sequence)
    return StoryPage(tuple(lines), story.is_complete)


def check_name(name: str) -> None:
    """Raise ApiError unless it is a name that a person can read in a list."""
    if not (0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable()):
        message = f"A name is one line of 1 to {NAME_CHARACTERS_MAX} characters."
        raise ApiError("invalid_value", message, "name")


def _key_view(row: KeyRow) -> KeyView:
    return KeyView(
        key_id=row.key_id,
        name=row.name,
        role=row.role,
        customer_id=row.customer_id,
        hint=row.hint,
        created_ms=row.created_ms,
        revoked_ms=row.revoked_ms,
    )


admin_router = Router(
    "/",
    route_handlers=[
        create_key,
        list_keys,
        revoke_key,
        create_code,
        get_status,
        get_story,
        *MODEL_ROUTES,
        *VEHICLE_ROUTES,
    ],
    guards=[require_operator],
    security=NEEDS_KEY,
    tags=["admin"],
)
