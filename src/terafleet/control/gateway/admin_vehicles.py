"""What operators do with cars over HTTP: list, remove, drain, and set their owners' policies."""

import re
from typing import Any

import msgspec
from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from terafleet.control.gateway.context import GatewayContext, ShardRefused
from terafleet.control.gateway.errors import ApiError
from terafleet.core.ids import VehicleId
from terafleet.core.policy_tables import PolicyFaults, policy_from
from terafleet.core.reasons import Refused
from terafleet.protocol.admin import POLICY_BYTES_MAX, VEHICLES_PATH, VehicleChanged, VehiclesPage
from terafleet.protocol.shard import (
    Answered,
    DrainVehicle,
    GetVehiclePolicy,
    ListVehicles,
    RemoveVehicle,
    SetVehiclePolicy,
    VehicleList,
    VehiclePolicy,
)

_VEHICLE_ID = re.compile(r"veh-[a-z]{10}")


@get(VEHICLES_PATH)
async def list_vehicles(context: NamedDependency[GatewayContext]) -> VehiclesPage:
    """All cars, as the shard sees them."""
    found = await context.ask(ListVehicles(), VehicleList)
    return VehiclesPage(found.vehicles)


@delete(f"{VEHICLES_PATH}/{{vehicle_id:str}}", status_code=200)
async def remove_vehicle(
    vehicle_id: FromPath[str], context: NamedDependency[GatewayContext]
) -> VehicleChanged:
    """Take a car out of the fleet for good; it gets no credential any more."""
    checked_id = _enrolled(vehicle_id, context)
    # First so that it can't renew; asking the shard twice does no harm, if the first was lost.
    context.catalogue.remove_vehicle(checked_id, context.now_ms())
    try:
        await context.ask(RemoveVehicle(checked_id), Answered)
    except ShardRefused as refused:
        if refused.answered.refused is not Refused.VEHICLE_UNKNOWN:
            raise
    return VehicleChanged(checked_id)


@post(f"{VEHICLES_PATH}/{{vehicle_id:str}}/drain", status_code=200)
async def drain_vehicle(
    vehicle_id: FromPath[str], context: NamedDependency[GatewayContext]
) -> VehicleChanged:
    """Grant a car nothing new; what it has it may end."""
    return await _drain(vehicle_id, context, is_draining=True)


@post(f"{VEHICLES_PATH}/{{vehicle_id:str}}/undrain", status_code=200)
async def undrain_vehicle(
    vehicle_id: FromPath[str], context: NamedDependency[GatewayContext]
) -> VehicleChanged:
    """Grant a car work again."""
    return await _drain(vehicle_id, context, is_draining=False)


@get(f"{VEHICLES_PATH}/{{vehicle_id:str}}/policy")
async def get_policy(
    vehicle_id: FromPath[str], context: NamedDependency[GatewayContext]
) -> dict[str, Any]:
    """The owner policy that was set here; what the owner says in the car goes before it."""
    checked_id = _enrolled(vehicle_id, context)
    found = await context.ask(GetVehiclePolicy(checked_id), VehiclePolicy)
    return msgspec.json.decode(found.policy, type=dict[str, Any]) if found.policy else {}


@put(f"{VEHICLES_PATH}/{{vehicle_id:str}}/policy", status_code=200)
async def put_policy(
    vehicle_id: FromPath[str],
    data: JSONBody[dict[str, Any]],
    context: NamedDependency[GatewayContext],
) -> VehicleChanged:
    """Set an owner policy, in the form of owner.toml; it holds where the owner says nothing else.

    All of it takes the place of what was set before.
    """
    found = policy_from(data)
    if isinstance(found, PolicyFaults):
        first = found.faults[0]
        raise ApiError("invalid_value", "; ".join(map(str, found.faults)), first.path)
    body = msgspec.json.encode(data)
    if len(body) > POLICY_BYTES_MAX:
        raise ApiError("invalid_value", f"A policy has {POLICY_BYTES_MAX} bytes at the most.")
    return await _set_policy(vehicle_id, context, body)


@delete(f"{VEHICLES_PATH}/{{vehicle_id:str}}/policy", status_code=200)
async def delete_policy(
    vehicle_id: FromPath[str], context: NamedDependency[GatewayContext]
) -> VehicleChanged:
    """Take back the policy that was set here: what the owner and the installer say holds alone."""
    return await _set_policy(vehicle_id, context, b"")


VEHICLE_ROUTES = (
    list_vehicles,
    remove_vehicle,
    drain_vehicle,
    undrain_vehicle,
    get_policy,
    put_policy,
    delete_policy,
)


async def _set_policy(vehicle_id: str, context: GatewayContext, policy: bytes) -> VehicleChanged:
    checked_id = _enrolled(vehicle_id, context)
    await context.ask(SetVehiclePolicy(checked_id, policy), Answered)
    return VehicleChanged(checked_id)


async def _drain(vehicle_id: str, context: GatewayContext, is_draining: bool) -> VehicleChanged:
    checked_id = _enrolled(vehicle_id, context)
    await context.ask(DrainVehicle(checked_id, is_draining), Answered)
    return VehicleChanged(checked_id)


def _enrolled(vehicle_id: str, context: GatewayContext) -> VehicleId:
    """The id of a car that has enrolled at some time. Raises ApiError."""
    is_id = _VEHICLE_ID.fullmatch(vehicle_id) is not None
    if not is_id or context.catalogue.vehicle(vehicle_id) is None:
        raise ApiError("vehicle_not_found", "There is no such car.", "vehicle_id")
    return VehicleId(vehicle_id)
