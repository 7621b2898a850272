"""Measures `Fleet.handle` alone: a large fleet, much waiting work, full rules, one core."""

import gc
import random
import time
from collections import deque

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.capability import Capability, ModelNeeds
from terafleet.core.fleet import Fleet
from terafleet.core.ids import BatchId, CustomerId, ModelId, RequestId, VehicleId
from terafleet.core.settings import FleetSettings
from terafleet.core.work import AttemptResult

MODELS = 20
MEMORY_MB = (4_000, 8_000, 16_000)
UNITS_PER_BATCH = 50_000
EVENTS = 300_000
GROUP = 256
SINGLE = 5_000
NO_REQUEST = RequestId("")
ENDPOINT = "/v1/embeddings"
NOW_MS = 1
US_PER_S = 1_000_000


def measure_core(vehicles: int, waiting: int, seed: int) -> dict[str, float]:
    """Events per second in groups, and microseconds from a result to the next placement."""
    fleet = Fleet()
    chance = random.Random(seed)  # noqa: S311 - it makes up cars, it guards nothing.
    _enrol(fleet, vehicles, chance)
    grants = _submit(fleet, max(1, waiting // UNITS_PER_BATCH))
    units_waiting = sum(shape.waiting_units for shape in fleet.state.index.shapes.values())
    gc.collect()
    gc.freeze()
    events_per_s = _steady(fleet, grants)
    latencies = sorted(_placements(fleet, grants))
    gc.unfreeze()
    return {
        "core_vehicles": vehicles,
        "core_units_waiting": units_waiting,
        "core_events_per_s": events_per_s,
        "placement_us_p50": latencies[len(latencies) // 2],
        "placement_us_p99": latencies[len(latencies) * 99 // 100],
    }


def _enrol(fleet: Fleet, vehicles: int, chance: random.Random) -> None:
    fleet.handle(ev.ShardStarted(NOW_MS, FleetSettings(units_per_lease_max=1)))
    for number in range(MODELS):
        needs = ModelNeeds(_model(number), f"model {number}", "noop", 500, (ENDPOINT,))
        fleet.handle(ev.ModelAdded(NOW_MS, needs, NO_REQUEST))
    for number in range(vehicles):
        vehicle_id = VehicleId(f"veh-{number:010d}")
        models = (_model(number % MODELS),)
        capability = Capability(("noop",), chance.choice(MEMORY_MB), 2, models)
        fleet.handle(
            ev.VehicleEnrolled(NOW_MS, vehicle_id, "car", NO_REQUEST),
            ev.VehicleConnected(NOW_MS, vehicle_id, "boot", capability, (), ()),
        )


def _model(number: int) -> ModelId:
    return ModelId(f"model-{number:02d}")


def _submit(fleet: Fleet, batches: int) -> "deque[fx.GrantLease]":
    grants: deque[fx.GrantLease] = deque()
    for number in range(batches):
        batch_id, model_id = BatchId(f"batch-{number}"), _model(number % MODELS)
        spec = ev.UnitSpec(model_id, 1, 1_000, 0, 10, b"")
        fleet.handle(
            ev.BatchCreated(
                NOW_MS,
                batch_id,
                CustomerId("customer"),
                ENDPOINT,
                (model_id,),
                UNITS_PER_BATCH,
                86_400_000,
                "file",
                b"",
                NO_REQUEST,
            )
        )
        submitted = ev.BatchSubmitted(NOW_MS, batch_id, (spec,) * UNITS_PER_BATCH, 0, NO_REQUEST)
        _collect(grants, fleet.handle(submitted))
    return grants


def _collect(grants: "deque[fx.GrantLease]", effects: list[fx.FleetEffect]) -> None:
    grants.extend(effect for effect in effects if type(effect) is fx.GrantLease)


def _returned(grant: fx.GrantLease) -> ev.AttemptsReturned:
    result = AttemptResult(grant.units[0].unit_id, 1, 0, 10, 0, 1, 1_000)
    return ev.AttemptsReturned(NOW_MS, grant.vehicle_id, grant.epoch, grant.lease_id, (result,))


def _steady(fleet: Fleet, grants: "deque[fx.GrantLease]") -> float:
    count, spent_s = 0, 0.0
    while count < EVENTS and grants:
        group = [_returned(grants.popleft()) for _ in range(min(GROUP, len(grants)))]
        started_s = time.process_time()
        effects = fleet.handle(*group)
        spent_s += time.process_time() - started_s
        _collect(grants, effects)
        count += len(group)
    return count / spent_s


def _placements(fleet: Fleet, grants: "deque[fx.GrantLease]") -> list[float]:
    """One result at a time, each of which leads to one placement."""
    latencies = []
    for _ in range(min(SINGLE, len(grants))):
        event = _returned(grants.popleft())
        started_s = time.perf_counter()
        effects = fleet.handle(event)
        latencies.append((time.perf_counter() - started_s) * US_PER_S)
        _collect(grants, effects)
    return latencies
