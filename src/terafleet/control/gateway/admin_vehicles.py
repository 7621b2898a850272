"""What operators do with cars over HTTP: list, remove, drain."""

import re

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from terafleet.control.gateway.context import GatewayContext, ShardRefused
from terafleet.control.gateway.errors import ApiError
from terafleet.core.ids import VehicleId
from terafleet.core.reasons import Refused
from terafleet.protocol.admin import VEHICLES_PATH, VehicleChanged, VehiclesPage
from terafleet.protocol.shard import (
    Answered,
    DrainVehicle,
    ListVehicles,
    RemoveVehicle,
    VehicleList,
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


VEHICLE_ROUTES = (list_vehicles, remove_vehicle, drain_vehicle, undrain_vehicle)


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
