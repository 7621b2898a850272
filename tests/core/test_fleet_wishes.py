"""What owners want to be done: their cars are granted nothing else."""

import msgspec
import pytest

from terafleet.core import events as ev
from terafleet.core.capability import BATCH, LIVE, Capability, capability_class, what_lacks
from tests.core.fleet_sessions_world import Seen, SessionsWorld
from tests.core.fleet_world import EMBEDDINGS, MODEL, Car

COMPLETIONS = "/v1/completions"


def wish(world: SessionsWorld, car: Car, *kinds: str, endpoints: tuple[str, ...] = ()) -> None:
    """The owner of a car lets it do such work only."""
    offered = msgspec.structs.replace(car.capability, kinds=kinds, endpoints=endpoints)
    car.capability = offered
    world.happen(ev.CapabilityChanged(world.now_ms, car.vehicle_id, car.epoch, offered))


@pytest.mark.parametrize(("kind", "is_live"), [(LIVE, True), (BATCH, False)])
def test_a_car_is_granted_the_kind_of_work_that_its_owner_wants(kind: str, is_live: bool) -> None:
    world = SessionsWorld()
    choosy = world.enrol("choosy", 2)
    wish(world, choosy, kind)
    world.batch("batch", units=1)
    seen = world.want("session").seen
    assert (seen is Seen.GRANTED) == is_live
    assert len(world.leases(choosy)) == 1
    other = world.enrol("other")
    assert len(world.leases(other)) == 1, "what nobody wanted waited for it"


def test_a_wish_that_changes_holds_for_what_comes() -> None:
    world = SessionsWorld()
    car = world.enrol("car")
    wish(world, car, LIVE)
    world.batch("batch", units=1)
    assert world.leases(car) == []
    wish(world, car, LIVE, BATCH)
    assert len(world.leases(car)) == 1


def test_a_model_needs_a_car_that_may_answer_at_all_of_its_endpoints() -> None:
    offered = Capability(("onnx",), 4_000, 1, endpoints=(COMPLETIONS,))
    lacks = what_lacks(capability_class(offered), MODEL)
    assert COMPLETIONS in lacks
    named = msgspec.structs.replace(offered, endpoints=(COMPLETIONS, EMBEDDINGS))
    assert what_lacks(capability_class(named), MODEL) == ""


def test_an_owner_who_wants_other_endpoints_gets_no_work() -> None:
    world = SessionsWorld()
    car = world.enrol("car")
    world.batch("batch", units=1)
    world.enrol("other")
    wish(world, car, LIVE, BATCH, endpoints=(COMPLETIONS,))
    before = len(world.leases(car))
    world.batch("more", units=3)
    assert len(world.leases(car)) == before, "what it has it may end"
