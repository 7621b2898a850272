"""Whether to take a request at all, and why accepted work waits; both with words for a person."""

from collections.abc import Iterable, Sequence

from terafleet.core.capability import CapabilityClass, ModelNeeds, is_feasible, what_lacks
from terafleet.core.reasons import Refused, Waiting


def admission_refusal(
    needs: Sequence[ModelNeeds | None],
    endpoint: str,
    known: Iterable[CapabilityClass],
    vehicles: int,
    vehicles_unknown: int,
) -> tuple[Refused, str] | None:
    """Why the fleet could never run a batch or a live request, or None.

    `needs` are the models, None where the fleet knows none; `known` the capability classes of
    all enrolled cars, online or not; `vehicles_unknown` of the `vehicles` enrolled cars have not
    yet said what they can.
    """
    classes = list(known)
    for model in needs:
        if model is None:
            return Refused.MODEL_UNKNOWN, "a model that is asked for is not in the catalogue"
        if endpoint not in model.endpoints:
            offered = ", ".join(model.endpoints)
            return Refused.ENDPOINT_UNSUPPORTED, f"{model.name} serves {offered}, not {endpoint}"
        if not vehicles:
            return Refused.FLEET_EMPTY, "no car is enrolled; enrol one and ask again"
        if vehicles_unknown:
            continue
        if not any(is_feasible(kind, model) for kind in classes):
            return Refused.NO_FEASIBLE_VEHICLE, _nearest(classes, model)
    return None


def _nearest(classes: Sequence[CapabilityClass], model: ModelNeeds) -> str:
    with_runtime = [kind for kind in classes if model.runtime in kind.runtimes]
    closest = max(with_runtime or classes, key=lambda kind: kind.memory_mb)
    lack = what_lacks(closest, model)
    return f"no car of the fleet can run {model.name}: the nearest {lack}"


def waiting_reason(online: int, permitting: int, quarantined: int) -> Waiting:
    """Why work waits, from the counts of the cars that could run it.

    `online` of them are connected, `permitting` of those permit, `quarantined` of those are
    in quarantine.
    """
    if not online:
        return Waiting.NO_VEHICLE_ONLINE
    if not permitting:
        return Waiting.ALL_VEHICLES_REFUSE
    if quarantined >= permitting:
        return Waiting.VEHICLES_QUARANTINED
    return Waiting.ALL_SLOTS_TAKEN
