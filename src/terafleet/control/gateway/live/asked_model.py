"""Finds the model that a live request names, and names others where it can't be had."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.live.failures import sentence
from terafleet.control.gateway.served_models import NAME_SHOWN_MAX, manifest_of, served_model
from terafleet.control.ports import Catalogue
from terafleet.core.ids import ModelId
from terafleet.protocol.manifest import Manifest

NAMED_MAX: Final = 3
"""How many other models an error names."""

COMPARED_CHARACTERS_MAX: Final = 64
COMPARED_MODELS_MAX: Final = 128
"""Bounds on the comparison of names, which takes the product of their lengths."""


def asked_model(catalogue: Catalogue, name: str, endpoint: str) -> ModelId:
    """The model that answers to a name. Raises ApiError that names what can be had."""
    found = served_model(catalogue, name, endpoint)
    if isinstance(found, str):
        return found
    names = [manifest.name for manifest in _serving(catalogue, endpoint)]
    raise ApiError(found.code, f"{found.message} {_told(_nearest(name, names))}", "model")


def unservable(catalogue: Catalogue, name: str, endpoint: str, reason: str) -> ApiError:
    """The error for a model of the catalogue that no car can run, with what comes nearest.

    `reason` is what the fleet says of it.
    """
    row = catalogue.model_by_name(name)
    memory_mb = manifest_of(row).memory_mb if row is not None else 0
    smaller = [one for one in _serving(catalogue, endpoint) if one.memory_mb < memory_mb]
    smaller.sort(key=lambda one: -one.memory_mb)
    others = [manifest.name for manifest in smaller[:NAMED_MAX]]
    words = reason or f"no car of the fleet can run {name[:NAME_SHOWN_MAX]}"
    return ApiError("model_not_found", f"{sentence(words)} {_told(others)}", "model")


def _serving(catalogue: Catalogue, endpoint: str) -> Iterable[Manifest]:
    for row in catalogue.models():
        manifest = manifest_of(row)
        if endpoint in manifest.endpoints:
            yield manifest


def _nearest(name: str, names: list[str]) -> list[str]:
    """The names that look most like one; if none does, some."""
    whole = {known[:COMPARED_CHARACTERS_MAX]: known for known in names[:COMPARED_MODELS_MAX]}
    found = get_close_matches(name[:COMPARED_CHARACTERS_MAX], whole, NAMED_MAX)
    return [whole[one] for one in found] or names[:NAMED_MAX]


def _told(names: list[str]) -> str:
    return f"The nearest are {', '.join(names)}." if names else "There is no other one."
