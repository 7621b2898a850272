"""The queue of sessions against a plain list: who is where, and how many of it are looked at."""

from collections.abc import Iterator

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.ids import CustomerId, GatewayId, ModelId, SessionId, VehicleId
from terafleet.core.records import SessionLease
from terafleet.core.session_queue import SessionQueue
from tests.core.fleet_sessions_world import CHAT, SessionsWorld
from tests.core.fleet_world import MODEL

MODELS = ("a", "b")
STEPS = st.lists(st.tuples(st.sampled_from(("join", "leave", "change")), st.integers(0, 20)))


def session(number: int, model: str = "a") -> SessionLease:
    gateway, customer = GatewayId("gateway"), CustomerId("customer")
    asked = (SessionId(f"ses-{number}"), gateway, 1, customer, ModelId(model), "/", 10, (), number)
    return SessionLease(*asked)


@given(steps=STEPS)
def test_it_is_a_line_for_each_model_in_the_order_of_joining(steps: list[tuple[str, int]]) -> None:
    queue = SessionQueue()
    plain: list[SessionLease] = []
    for number, (step, at) in enumerate(steps):
        if step == "join":
            queue.join(session(number, MODELS[at % 2]))
            found = queue.get(SessionId(f"ses-{number}"))
            assert found is not None
            plain.append(found)
        elif plain:
            at %= len(plain)
            one = plain[at]
            if step == "leave":
                queue.leave(one.session_id)
                queue.leave(one.session_id)
                del plain[at]
                assert one.session_id not in queue
            else:
                plain[at] = msgspec.structs.replace(one, excluded=(VehicleId("veh"),))
                queue.change(plain[at])
        check(queue, plain)
        # A restored one is alike, also in the numbers that it will give.
        check(SessionQueue(queue), plain)


def check(queue: SessionQueue, plain: list[SessionLease]) -> None:
    """A queue holds exactly these, and is never too hopeful about anybody's place."""
    assert (list(queue), len(queue)) == (plain, len(plain))
    lines = {model: [one for one in plain if one.model_id == model] for model in MODELS}
    assert set(queue.models()) == {model for model, line in lines.items() if line}
    for model, line in lines.items():
        assert list(queue.line(ModelId(model))) == line
        assert queue.waiting(ModelId(model)) == len(line)
        assert queue.place_of(session(-1, model)) == len(line) + 1
        places = [queue.place_of(one) for one in line]
        assert places == sorted(places)
        for at, place in enumerate(places):
            assert at + 1 <= place <= len(line)
        assert places[:1] == [1] * len(line[:1])


def test_places_are_exact_while_all_leave_from_the_front() -> None:
    queue = SessionQueue()
    for number in range(10):
        queue.join(session(number))
        if number % 3 == 2:
            queue.leave(next(iter(queue)).session_id)
        assert [queue.place_of(one) for one in queue] == list(range(1, len(queue) + 1))


class Watched(SessionQueue):
    """Counts who is looked at."""

    looked_at = 0

    def __iter__(self) -> Iterator[SessionLease]:
        raise AssertionError("all of the queue is looked at")

    def line(self, model_id: ModelId) -> Iterator[SessionLease]:
        for one in super().line(model_id):
            self.looked_at += 1
            yield one


def test_who_does_not_want_what_is_free_is_looked_at_once() -> None:
    world = SessionsWorld()
    world.enrol("car")
    holder = world.want("holder")
    world.want("picky", world.cars[holder.vehicle_id], tokens=1)
    fleet = world.fleet
    watched = fleet.state.queued_sessions = Watched(fleet.state.queued_sessions)
    fleet.handle(world.answered(holder.lease_id, holder.vehicle_id))
    assert watched.looked_at == 1
    for _ in range(5):
        fleet.handle(ev.TimeAdvanced(world.now_ms))
    assert watched.looked_at == 1


def test_an_event_looks_at_no_more_of_them_than_it_serves_and_one_of_each_model() -> None:
    world = SessionsWorld()
    world.enrol("car")
    stranger = world.enrol("stranger", 1, "llama")
    holder = world.want("holder")
    for number in range(60):
        world.tick(1)
        world.want(f"ses-{number}", tokens=1, model=(MODEL, CHAT)[number % 2])
    fleet = world.fleet
    watched = fleet.state.queued_sessions = Watched(fleet.state.queued_sessions)
    epoch, now_ms = stranger.epoch, world.now_ms
    # A free slot that is of no use to them, who asks again, who is new, who leaves.
    for event in (
        ev.PermitChanged(now_ms, stranger.vehicle_id, epoch, ()),
        world.asked("ses-30", tokens=1),
        world.asked("new", tokens=1),
        ev.SessionUnwanted(now_ms, SessionId("ses-40"), holder.lease_id),
    ):
        before = watched.looked_at
        fleet.handle(event)
        assert watched.looked_at - before <= 1
    before = watched.looked_at
    answered = world.answered(holder.lease_id, holder.vehicle_id)
    granted = [one for one in fleet.handle(answered) if isinstance(one, fx.TellGranted)]
    assert [one.session_id for one in granted] == ["ses-0"]
    # The first of each model, who is behind the served one, and where that one stood.
    assert watched.looked_at - before <= 4
