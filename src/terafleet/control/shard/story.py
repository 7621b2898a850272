"""Tells from the journal, in words, what happened to a batch, unit, lease or vehicle."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from terafleet.control.shard.journal import FLEET_CODEC
from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.work import AttemptResult
from terafleet.engine.ports import Store
from terafleet.protocol.shard import Story, StoryLine

LINES_MAX = 10_000


def tell(store: Store, about: str, limit: int) -> Story:
    """The newest `limit` lines about a thing, oldest first.

    `about` is an id as the product prints it: `batch_…`, `veh-…`, `lease-7`, `unit-12`, or a
    model's id. Work units and leases that belong to it are told where they matter to it.
    """
    lines: deque[StoryLine] = deque(maxlen=max(1, min(limit, LINES_MAX)))
    count = 0
    for entry in store.entries():
        events = FLEET_CODEC.decode_events(entry.events)
        effects = FLEET_CODEC.decode_effects(entry.effects)
        for text in _texts(about, events, effects):
            lines.append(StoryLine(entry.at_ms, entry.sequence, text))
            count += 1
    return Story(tuple(lines), count <= len(lines))


def _texts(about: str, events: list[ev.FleetEvent], effects: list[fx.FleetEffect]) -> Iterator[str]:
    for fact in (*events, *effects):
        if about in _named(fact):
            text = _words(fact)
            if text:
                yield text


def _named(fact: ev.FleetEvent | fx.FleetEffect) -> set[str]:
    """The ids that a fact names, in the product's own writing."""
    named: set[str] = set()
    for field, value in msgspec.structs.asdict(fact).items():
        if field in ("vehicle_id", "batch_id", "model_id", "session_id"):
            named.add(value)
        elif field == "model_ids":
            named.update(value)
        elif field == "needs":
            named.add(value.model_id)
        elif field == "lease_id":
            named.add(f"lease-{value}")
        elif field == "unit_id":
            named.add(f"unit-{value}")
        elif field == "units" and isinstance(fact, fx.GrantLease):
            named.update(f"unit-{unit.unit_id}" for unit in fact.units)
        elif field == "results":
            named.update(f"unit-{result.unit_id}" for result in value)
        elif field == "receipt_id":
            named.add(f"unit-{value}")
    return named


def _words(fact: ev.FleetEvent | fx.FleetEffect) -> str:
    """A fact as a sentence; empty for what says nothing to a person."""
    teller = _TELLERS.get(type(fact))
    return teller(fact) if teller else ""


def _granted(fact: fx.GrantLease) -> str:
    return (
        f"lease-{fact.lease_id} granted to {fact.vehicle_id} (epoch {fact.epoch}): "
        f"{_units(fact.units)} of {fact.batch_id}"
    )


def _returned(fact: ev.AttemptsReturned) -> str:
    answers = sum(result.answers for result in fact.results)
    runtime_ms = sum(result.runtime_ms for result in fact.results)
    energy_mwh = sum(result.energy_mwh for result in fact.results)
    return (
        f"{fact.vehicle_id} handed in {_units(fact.results)} under lease-{fact.lease_id}: "
        f"{answers} answers in {runtime_ms} ms, {energy_mwh} mWh"
    )


def _units(units: Sequence[fx.GrantedUnit] | Sequence[AttemptResult]) -> str:
    numbers = [unit.unit_id for unit in units]
    if len(numbers) == 1:
        return f"unit-{numbers[0]}"
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"units {numbers[0]} to {numbers[-1]}"
    return f"units {', '.join(map(str, numbers))}"


def _connected(fact: ev.VehicleConnected) -> str:
    held = f", holding {len(fact.held)} leases" if fact.held else ""
    why = f", refusing: {', '.join(fact.refusals)}" if fact.refusals else ""
    return f"{fact.vehicle_id} said hello (agent process {fact.boot_id}){held}{why}"


def _permit(fact: ev.PermitChanged) -> str:
    if fact.refusals:
        return f"{fact.vehicle_id} refuses: {', '.join(fact.refusals)}"
    return f"{fact.vehicle_id} permits"


def _warmed(fact: ev.ModelWarmed) -> str:
    if not fact.slots:
        return f"{fact.model_id} need not stay in memory any more"
    slots = "1 slot" if fact.slots == 1 else f"{fact.slots} slots"
    return f"{fact.model_id} shall stay in memory in {slots}"


def _kept(fact: fx.KeepLoaded) -> str:
    if not fact.model_ids:
        return f"{fact.vehicle_id} is asked to keep nothing in memory"
    return f"{fact.vehicle_id} is asked to keep in memory: {', '.join(fact.model_ids)}"


def _recorded(fact: fx.RecordBatch) -> str:
    done = fact.requests_completed + fact.requests_failed
    waiting = f", waiting: {fact.waiting}" if fact.waiting else ""
    return f"{fact.batch_id} is {fact.state}: {done} of {fact.requests} requests done{waiting}"


def _answered(fact: fx.AnswerRequest) -> str:
    return f"refused: {fact.refused}: {fact.detail}" if fact.refused else ""


_TELLERS: dict[type, Callable[[Any], str]] = {
    ev.VehicleEnrolled: lambda fact: f"{fact.vehicle_id} enrolled as {fact.name}",
    ev.VehicleRemoved: lambda fact: f"{fact.vehicle_id} removed from the fleet",
    ev.VehicleConnected: _connected,
    ev.CapabilityChanged: lambda fact: (
        f"{fact.vehicle_id} offers {', '.join(fact.capability.runtimes)} with "
        f"{fact.capability.memory_mb} MB and {fact.capability.slots} slots, "
        f"{len(fact.capability.models)} models on disk, {len(fact.capability.loaded)} in memory"
    ),
    ev.PermitChanged: _permit,
    ev.VehicleSilent: lambda fact: (
        f"{fact.vehicle_id} is silent for {fact.at_ms - fact.heard_ms} ms"
    ),
    ev.VehicleHeard: lambda fact: f"{fact.vehicle_id} speaks again",
    ev.VehicleLeft: lambda fact: f"{fact.vehicle_id} said goodbye",
    ev.VehiclePolicySet: lambda fact: (
        f"{fact.vehicle_id} has {'an' if fact.policy else 'no'} owner policy set by the operator"
    ),
    ev.VehicleDrained: lambda fact: (
        f"{fact.vehicle_id} {'drains' if fact.is_draining else 'takes work again'}"
    ),
    ev.ModelAdded: lambda fact: f"{fact.needs.model_id} added as {fact.needs.name}",
    ev.ModelRemoved: lambda fact: f"{fact.model_id} removed from the catalogue",
    ev.ModelWarmed: _warmed,
    ev.LoadFailed: lambda fact: (
        f"{fact.vehicle_id} can't keep {fact.model_id} in memory: "
        f"{fact.failure}{': ' + fact.detail if fact.detail else ''}"
    ),
    ev.BatchCreated: lambda fact: (
        f"{fact.batch_id} asked for: {fact.requests} requests to {fact.endpoint}"
    ),
    ev.BatchSubmitted: lambda fact: f"{fact.batch_id} cut into {len(fact.units)} units",
    ev.BatchRejected: lambda fact: f"{fact.batch_id} can't be cut: its file is of no use",
    ev.BatchCancelled: lambda fact: f"{fact.batch_id} cancelled by its customer",
    ev.BatchAssembled: lambda fact: f"{fact.batch_id}: files written",
    ev.AttemptsReturned: _returned,
    ev.AttemptFailed: lambda fact: (
        f"{fact.vehicle_id} failed unit-{fact.unit_id} under lease-{fact.lease_id}: "
        f"{fact.failure}{': ' + fact.detail if fact.detail else ''}"
    ),
    ev.LeaseReleased: lambda fact: (
        f"{fact.vehicle_id} gave lease-{fact.lease_id} back: {fact.ending}"
    ),
    fx.WelcomeVehicle: lambda fact: f"epoch {fact.epoch} of {fact.vehicle_id} begins",
    fx.FenceVehicle: lambda fact: f"epoch {fact.epoch} of {fact.vehicle_id} is over",
    fx.GrantLease: _granted,
    ev.SessionWanted: lambda fact: (
        f"{fact.session_id} asked for a {'spare ' if fact.only_spare else ''}slot: "
        f"{fact.endpoint}, about {fact.tokens} tokens"
        f"{', not on ' + ', '.join(fact.excluded) if fact.excluded else ''}"
    ),
    ev.SessionUnwanted: lambda fact: (
        f"{fact.session_id} is done with lease-{fact.lease_id}"
        if fact.lease_id
        else f"{fact.session_id} waits no more"
    ),
    fx.GrantSession: lambda fact: (
        f"lease-{fact.lease_id} granted to {fact.vehicle_id} (epoch {fact.epoch}) for "
        f"{fact.session_id}"
        f"{f', in place of lease-{fact.replaces}' if fact.replaces else ''}"
    ),
    fx.OfferPolicy: lambda fact: f"{fact.vehicle_id} is told its owner policy",
    fx.KeepLoaded: _kept,
    fx.TellQueued: lambda fact: f"{fact.session_id} waits for about {fact.wait_ms} ms",
    fx.TellRefused: lambda fact: f"{fact.session_id} refused: {fact.refused}: {fact.detail}",
    fx.TellLost: lambda fact: f"{fact.session_id} lost lease-{fact.lease_id}: {fact.ending}",
    fx.RevokeLease: lambda fact: (
        f"lease-{fact.lease_id} of {fact.vehicle_id} revoked: {fact.ending}"
    ),
    fx.AcknowledgeReceipt: lambda _: "",
    fx.DropOutputs: lambda fact: (
        f"outputs from unit-{fact.receipt_id} on under lease-{fact.lease_id} dropped: "
        "they count for nothing"
    ),
    fx.CutBatch: lambda fact: f"a gateway is asked to cut {fact.batch_id}",
    fx.AssembleOutput: lambda fact: f"a gateway is asked to write the files of {fact.batch_id}",
    fx.ForgetBatch: lambda fact: f"inputs and outputs of {fact.batch_id}'s units are forgotten",
    fx.RecordBatch: _recorded,
    fx.AnswerRequest: _answered,
}
