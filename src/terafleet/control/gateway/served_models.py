"""Which model a name stands for at an endpoint, as the catalogue says at this moment."""

import msgspec

from terafleet.control.ports import Catalogue, ModelRow
from terafleet.core.ids import ModelId
from terafleet.protocol.manifest import Manifest

NAME_SHOWN_MAX = 256

_MANIFEST = msgspec.json.Decoder(Manifest)


class Unserved(msgspec.Struct, frozen=True):
    """Why a model can't be asked at an endpoint: a code of the table of errors, and words."""

    code: str
    message: str


def manifest_of(row: ModelRow) -> Manifest:
    """What a model is; the catalogue keeps only manifests that were checked."""
    return _MANIFEST.decode(row.signed.manifest)


def served_model(catalogue: Catalogue, name: str, endpoint: str) -> ModelId | Unserved:
    """The id of the model that answers to a name at an endpoint, or why there is none."""
    row = catalogue.model_by_name(name)
    shown = name[:NAME_SHOWN_MAX]
    if row is None:
        return Unserved("model_not_found", f"There is no model {shown}.")
    endpoints = manifest_of(row).endpoints
    if endpoint not in endpoints:
        served = ", ".join(endpoints)
        return Unserved("unsupported_endpoint", f"{shown} serves {served}, not {endpoint}.")
    return ModelId(row.model_id)
