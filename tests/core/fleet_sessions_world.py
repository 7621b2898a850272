"""The small world of a fleet, with gateways that want live sessions of it.

It holds what each gateway has been told of its session, and checks after every event that the
fleet means the same, and that no slot which a waiting session could have is left to anything else.
"""

from collections import Counter
from enum import StrEnum

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.capability import LIVE, Capability, ModelNeeds, capability_class, is_feasible
from terafleet.core.ids import (
    SESSION_UNIT,
    CustomerId,
    GatewayId,
    LeaseId,
    ModelId,
    SessionId,
    VehicleId,
)
from terafleet.core.records import NOT_READY, LeaseRecord, VehicleRecord
from terafleet.core.settings import FleetSettings
from terafleet.core.work import AttemptResult
from tests.core.fleet_world import EMBEDDINGS, MODEL, NO_REQUEST, SETTINGS, Car, World

CHAT = ModelNeeds(ModelId("chat"), "chat", "onnx", 1_000, (EMBEDDINGS,))
GATEWAY = GatewayId("gateway")


class Seen(StrEnum):
    """What the gateway has heard last."""

    NOTHING = "nothing"
    GRANTED = "granted"
    QUEUED = "queued"
    REFUSED = "refused"
    LOST = "lost"
    OVER = "over"


class Wish:
    """A session as its gateway knows it."""

    def __init__(self, session_id: SessionId, model: ModelNeeds, tokens: int) -> None:
        self.session_id = session_id
        self.model = model
        self.tokens = tokens
        self.ask = 0
        self.excluded: tuple[VehicleId, ...] = ()
        self.only_spare = False
        self.seen = Seen.NOTHING
        self.lease_id = LeaseId(0)
        self.vehicle_id = VehicleId("")
        self.refused: fx.TellRefused | None = None
        self.queued: fx.TellQueued | None = None
        self.duration_ms_max = 0


def seen(wish: Wish) -> Seen:
    """What the gateway of a session has heard last."""
    return wish.seen


class SessionsWorld(World):
    """A fleet, its cars, its batches, and the gateways with their sessions."""

    def __init__(self, settings: FleetSettings = SETTINGS) -> None:
        self.wishes: dict[SessionId, Wish] = {}
        self.lost: list[fx.TellLost] = []
        self.credited: Counter[VehicleId] = Counter()
        self.canaries: Counter[VehicleId] = Counter()
        super().__init__(settings)
        self.happen(ev.ModelAdded(self.now_ms, CHAT, NO_REQUEST))

    # What gateways want.

    def want(
        self,
        name: str,
        *excluded: Car,
        tokens: int = 100,
        model: ModelNeeds = MODEL,
        only_spare: bool = False,
    ) -> Wish:
        """A gateway asks for a slot, for the first time or again, and not on these cars."""
        event = self.asked(name, *excluded, tokens=tokens, model=model, only_spare=only_spare)
        self.happen(event)
        return self.wishes[event.session_id]

    def asked(
        self,
        name: str,
        *excluded: Car,
        tokens: int = 100,
        model: ModelNeeds = MODEL,
        only_spare: bool = False,
    ) -> ev.SessionWanted:
        """The question that `want` asks."""
        session_id = SessionId(name)
        wish = self.wishes.setdefault(session_id, Wish(session_id, model, tokens))
        wish.ask += 1
        wish.only_spare = wish.only_spare or only_spare
        left = [one.vehicle_id for one in excluded]
        wish.excluded = tuple(dict.fromkeys((*wish.excluded, *left)))
        if wish.vehicle_id in left:
            wish.seen = Seen.NOTHING
        return ev.SessionWanted(
            self.now_ms,
            session_id,
            GATEWAY,
            wish.ask,
            CustomerId("customer"),
            wish.model.model_id,
            EMBEDDINGS,
            wish.tokens,
            wish.excluded,
            wish.only_spare,
        )

    def unwant(self, name: str) -> None:
        """A gateway wants what it has no more: its lease, or a place in the queue."""
        wish = self.wishes[SessionId(name)]
        lease_id = wish.lease_id if wish.seen is Seen.GRANTED else LeaseId(0)
        wish.seen, wish.lease_id = Seen.OVER, LeaseId(0)
        self.happen(ev.SessionUnwanted(self.now_ms, wish.session_id, lease_id))

    # What cars say of their sessions.

    def answered(self, lease_id: LeaseId, vehicle_id: VehicleId) -> ev.AttemptsReturned:
        """The receipt of a session: 100 tokens, 3 mWh, 1,000 ms."""
        result = AttemptResult(SESSION_UNIT, 1, 0, 60, 40, 3, 1_000)
        epoch = self.cars[vehicle_id].epoch
        return ev.AttemptsReturned(self.now_ms, vehicle_id, epoch, lease_id, (result,))

    def answer(self, wish: Wish) -> ev.AttemptsReturned:
        """The car of a session hands in that it has told the whole answer."""
        event = self.answered(wish.lease_id, wish.vehicle_id)
        self.hand_in(event)
        return event

    def lease_of(self, wish: Wish) -> LeaseRecord:
        """The lease that a session has."""
        return self.fleet.state.leases[wish.lease_id]

    def offer(self, car: Car, *, models: tuple[ModelId, ...], loaded: tuple[ModelId, ...]) -> None:
        """A car has these models on its disk and in its memory."""
        old = car.capability
        car.capability = Capability(old.runtimes, old.memory_mb, old.slots, models, "", loaded)
        self.happen(ev.CapabilityChanged(self.now_ms, car.vehicle_id, car.epoch, car.capability))

    # What the fleet says.

    def happen(self, *events: ev.FleetEvent) -> list[fx.FleetEffect]:
        """Let the fleet handle events; what it then tells and holds must agree."""
        for event in events:
            if isinstance(event, ev.AttemptsReturned) and self._is_due(event):
                self._done(event)
                self._note_answer(event)
        best = self._best_slot(events[0]) if len(events) == 1 else None
        super().happen(*events)
        if best is not None:
            self._check_slot(best)
        self._check_sessions()
        return self.effects

    def _note_answer(self, event: ev.AttemptsReturned) -> None:
        lease = self.fleet.state.leases[event.lease_id]
        if lease.session is None:
            return
        wish = self.wishes[lease.session.session_id]
        (self.canaries if wish.only_spare else self.credited)[event.vehicle_id] += 1
        if not lease.is_unwanted and wish.lease_id == lease.lease_id:
            wish.seen = Seen.OVER

    def _fits(self, event: ev.AttemptsReturned) -> bool:
        """Whether a receipt that is due brings units; one of a session brings none."""
        return event.results[0].unit_id != SESSION_UNIT and super()._fits(event)

    def _hear(self, effect: fx.FleetEffect) -> None:
        match effect:
            case fx.GrantSession():
                self._session_granted(effect)
            case fx.TellGranted():
                self._told_granted(effect)
            case fx.TellQueued():
                wish = self._wish(effect)
                assert wish.seen is not Seen.GRANTED
                assert effect.wait_ms >= 0
                assert 0 <= effect.wait_ms_max <= self.fleet.state.settings.session_wait_ms
                wish.seen, wish.queued = Seen.QUEUED, effect
            case fx.TellRefused():
                wish = self._wish(effect)
                assert wish.seen is not Seen.GRANTED
                wish.seen, wish.refused = Seen.REFUSED, effect
            case fx.TellLost():
                wish = self.wishes[effect.session_id]
                assert wish.lease_id == effect.lease_id, "it is told of the lease that it has, once"
                assert wish.seen is Seen.GRANTED
                wish.seen = Seen.LOST
                self.lost.append(effect)
            case _:
                super()._hear(effect)

    def _wish(self, effect: fx.TellGranted | fx.TellQueued | fx.TellRefused) -> Wish:
        wish = self.wishes[effect.session_id]
        assert effect.gateway_id == GATEWAY
        assert effect.ask <= wish.ask
        return wish

    def _session_granted(self, grant: fx.GrantSession) -> None:
        """A session's lease reaches its car, which must be one that may have it."""
        car = self.cars[grant.vehicle_id]
        vehicle = self.vehicle(car)
        if self.wishes[grant.session_id].only_spare:
            assert not grant.replaces, "a canary preempts nobody"
            assert grant.model_id in car.capability.loaded, "nothing is loaded for a canary"
        assert car.epoch == grant.epoch
        assert _permits(vehicle)
        assert vehicle.quarantined_until_ms <= self.fleet.state.now_ms
        assert _can_run(vehicle, self.wishes[grant.session_id].model)
        if grant.replaces:
            replaced = car.held.pop(grant.replaces, [])
            assert SESSION_UNIT not in replaced, "a session's slot is not another's"
            assert grant.replaces not in self.fleet.state.leases
        assert grant.lease_id not in car.held
        car.held[grant.lease_id] = [SESSION_UNIT]
        assert len(car.held) <= car.capability.slots, "a slot has two leases"

    def _told_granted(self, effect: fx.TellGranted) -> None:
        wish = self._wish(effect)
        if wish.seen is Seen.GRANTED:
            assert wish.lease_id == effect.lease_id, "a session has two leases"
        assert effect.vehicle_id not in wish.excluded
        assert effect.epoch == self.cars[effect.vehicle_id].epoch
        assert effect.duration_ms_max >= self.fleet.state.settings.session_ms_min
        wish.lease_id, wish.vehicle_id = effect.lease_id, effect.vehicle_id
        wish.duration_ms_max = effect.duration_ms_max
        if wish.seen is not Seen.OVER:
            wish.seen = Seen.GRANTED

    # What must hold.

    def _best_slot(self, event: ev.FleetEvent) -> tuple[int, bool] | None:
        """Where a session that asks for its first slot is best off, or None without any slot.

        How far its model is (in memory, on disk, elsewhere), and whether the slot is a batch's.
        """
        state = self.fleet.state
        if not isinstance(event, ev.SessionWanted) or event.model_id not in state.models:
            return None
        is_new = event.session_id not in state.sessions
        if not is_new or event.only_spare or event.session_id in state.queued_sessions:
            return None
        wish = self.wishes[event.session_id]
        suitable = [one for one in state.vehicles.values() if self._suits(one, wish)]
        slots = [(_distance(one, wish.model), one.ready_level == NOT_READY) for one in suitable]
        return min(slots, default=None)

    def _check_slot(self, best: tuple[int, bool]) -> None:
        """The session that just asked has got the best slot that there was."""
        (grant,) = self.said(fx.GrantSession)
        vehicle = self.fleet.state.vehicles[grant.vehicle_id]
        found = (_distance(vehicle, self.wishes[grant.session_id].model), grant.replaces != 0)
        assert found <= best, "there was a slot with an earlier first token"

    def _check_sessions(self) -> None:
        state = self.fleet.state
        for wish in self.wishes.values():
            held = state.sessions.get(wish.session_id)
            assert (held is not None) == (wish.seen is Seen.GRANTED)
            assert held is None or held == wish.lease_id
            is_queued = wish.session_id in state.queued_sessions
            assert is_queued == (wish.seen is Seen.QUEUED)
            if is_queued:
                could = [
                    one.vehicle_id for one in state.vehicles.values() if self._suits(one, wish)
                ]
                assert not could, "it waits for what it could have"
        for vehicle_id, answers in self.credited.items():
            vehicle = state.vehicles.get(vehicle_id)
            assert vehicle is None or vehicle.units_succeeded >= answers
        for vehicle in state.vehicles.values():
            assert vehicle.canaries_answered <= self.canaries[vehicle.vehicle_id]

    def _suits(self, vehicle: VehicleRecord, wish: Wish) -> bool:
        """Whether a car has a slot that a session could have: free, or a batch's."""
        assert vehicle.capability is not None or not vehicle.epoch
        leases = [self.fleet.state.leases[one] for one in vehicle.leases]
        return (
            _permits(vehicle)
            and vehicle.vehicle_id not in self.fleet.state.quarantined
            and vehicle.vehicle_id not in wish.excluded
            and _can_run(vehicle, wish.model)
            and (vehicle.is_ready() or any(one.session is None for one in leases))
        )


def _permits(vehicle: VehicleRecord) -> bool:
    is_there = vehicle.epoch != 0 and not vehicle.is_silent
    return is_there and not vehicle.refusals and not vehicle.is_draining


def _distance(vehicle: VehicleRecord, needs: ModelNeeds) -> int:
    """How far a model is: 0 in memory, 1 on disk, 2 elsewhere."""
    assert vehicle.capability is not None
    if needs.model_id in vehicle.capability.loaded:
        return 0
    return 1 if needs.model_id in vehicle.capability.models else 2


def _can_run(vehicle: VehicleRecord, needs: ModelNeeds) -> bool:
    offered = vehicle.capability
    if offered is None or LIVE not in offered.kinds:
        return False
    return is_feasible(capability_class(offered), needs)
