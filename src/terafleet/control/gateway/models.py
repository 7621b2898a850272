"""The models that requests can name, over HTTP."""

from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from terafleet.control.gateway.auth import require_key
from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.served_models import NAME_SHOWN_MAX, manifest_of
from terafleet.control.ports import ModelRow
from terafleet.core.units import MS_PER_S
from terafleet.protocol.openai import MODELS_PATH, ModelFacts, ModelList, ModelObject


def model_object(row: ModelRow) -> ModelObject:
    """A model as customers read it."""
    facts = ModelFacts(model_id=row.model_id, endpoints=manifest_of(row).endpoints)
    return ModelObject(id=row.name, created=row.created_ms // MS_PER_S, terafleet=facts)


@get("/")
async def list_models(context: NamedDependency[GatewayContext]) -> ModelList:
    """All models."""
    return ModelList(data=tuple(map(model_object, context.catalogue.models())))


@get("/{name:path}")
async def get_model(name: FromPath[str], context: NamedDependency[GatewayContext]) -> ModelObject:
    """One model; its name may contain slashes."""
    name = name.removeprefix("/")
    row = context.catalogue.model_by_name(name)
    if row is None:
        message = f"There is no model {name[:NAME_SHOWN_MAX]}."
        raise ApiError("model_not_found", message, "model")
    return model_object(row)


models_router = Router(
    MODELS_PATH,
    route_handlers=[list_models, get_model],
    guards=[require_key],
    tags=["models"],
)
