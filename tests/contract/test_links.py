"""The shard's links: heartbeats end there, the fleet hears only changes and silences."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import pytest

from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.bus.ports import Message
from terafleet.control.shard.links import (
    DETAIL_CHARACTERS_MAX,
    FIGURE_MAX,
    SLOTS_MAX,
    Links,
    LinkSettings,
)
from terafleet.core import events as ev
from terafleet.core.capability import Capability
from terafleet.core.effects import WelcomeVehicle
from terafleet.core.events import HeldLease
from terafleet.core.ids import Epoch, LeaseId, ModelId, VehicleId, WorkUnitId, output_name
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.engine.clock import ManualClock
from terafleet.engine.ports import Blob
from terafleet.protocol import agent as wire
from tests.contract.virtual_time import VirtualTime

VEHICLE, OTHER = VehicleId("veh-abcdefghij"), VehicleId("veh-klmnopqrst")
CAPABILITY = Capability(("onnx",), 4_000, 2, (ModelId("m"),), "phone")
SETTINGS = LinkSettings()
LEASE_MS, MARGIN_MS = 20_000, 4_000
UNPLUGGED = (Refusal.UNPLUGGED,)
LEASE, UNIT, WHOLE_LEASE = LeaseId(7), WorkUnitId(12), WorkUnitId(-1)

E = TypeVar("E", bound=ev.Event)


class FakeCar:
    """A car that says what the test wants and notes what it hears."""

    def __init__(self, broker: MemoryBroker, vehicle_id: VehicleId) -> None:
        self.vehicle_id = vehicle_id
        self.bus = MemoryBus(broker)
        self.heard: list[wire.ToVehicle] = []

    async def open(self) -> None:
        """Connect and listen."""
        await self.bus.connect()
        await self.bus.subscribe(wire.down_subject(self.vehicle_id), self._take)

    def say(self, message: wire.UpMessage | bytes) -> None:
        """Send a message, or any bytes."""
        body = message if isinstance(message, bytes) else wire.ENCODER.encode(message)
        self.bus.publish(wire.up_subject(self.vehicle_id), body)

    def hello(
        self,
        refusals: tuple[Refusal, ...] = (),
        capability: Capability = CAPABILITY,
        protocol: int = wire.PROTOCOL,
    ) -> None:
        """Say hello, holding one lease."""
        held = (HeldLease(LEASE, (UNIT,)),)
        self.say(wire.Hello(protocol, "boot", "0.1.0", capability, refusals, held))

    def _take(self, message: Message) -> None:
        self.heard.append(wire.TO_VEHICLE_DECODER.decode(message.body))


class Stage:
    """Links with a list in place of the fleet, whose inbox may be full."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_000_000)
        self.time = VirtualTime()
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.car, self.other = FakeCar(self.broker, VEHICLE), FakeCar(self.broker, OTHER)
        self.events: list[ev.FleetEvent] = []
        self.blobs: list[Blob] = []
        self.is_full = False
        self.epochs = 0
        self.links = Links(self.bus, self._submit, self.clock.now_ms, SETTINGS)

    def _submit(self, event: ev.FleetEvent, blobs: Sequence[Blob]) -> bool:
        if not self.is_full:
            self.events.append(event)
            self.blobs += blobs
        return not self.is_full

    async def open(self) -> None:
        """Everybody listens."""
        await self.bus.connect()
        await self.bus.subscribe(wire.UP_SUBJECTS, self.links.receive)
        await self.car.open()
        await self.other.open()

    async def settle(self) -> None:
        """Let everything arrive that is on its way."""
        await self.time.settle()

    def welcome(self, vehicle_id: VehicleId = VEHICLE) -> Epoch:
        """The fleet begins an epoch."""
        self.epochs += 1
        epoch = Epoch(self.epochs)
        self.links.welcome(WelcomeVehicle(vehicle_id, epoch, "boot", LEASE_MS, MARGIN_MS))
        return epoch

    async def connect(
        self, refusals: tuple[Refusal, ...] = (), car: FakeCar | None = None
    ) -> Epoch:
        """A car says hello and is welcomed; what was heard and told is forgotten."""
        chosen = car or self.car
        chosen.hello(refusals)
        await self.settle()
        epoch = self.welcome(chosen.vehicle_id)
        await self.settle()
        chosen.heard.clear()
        self.events.clear()
        return epoch

    async def say(self, message: wire.UpMessage | bytes) -> None:
        """The car says something, and it arrives."""
        self.car.say(message)
        await self.settle()

    def told(self, kind: type[E]) -> list[E]:
        """The events of a kind that the fleet was told."""
        return [event for event in self.events if isinstance(event, kind)]

    def pass_ms(self, duration_ms: int) -> None:
        """Let time pass, and look for silence."""
        self.clock.advance(duration_ms)
        self.links.look_for_silence()


@pytest.fixture
async def stage() -> Stage:
    made = Stage()
    await made.open()
    return made


# Hello and welcome.


async def test_a_hello_tells_the_fleet_all_that_it_says(stage: Stage) -> None:
    stage.car.hello(UNPLUGGED)
    await stage.settle()
    held = (ev.HeldLease(LEASE, (UNIT,)),)
    now_ms = stage.clock.now_ms()
    assert stage.events == [
        ev.VehicleConnected(now_ms, VEHICLE, "boot", CAPABILITY, UNPLUGGED, held)
    ]
    assert stage.car.heard == [], "only the fleet welcomes"


async def test_a_welcome_tells_the_car_its_epoch_and_the_times_that_hold(stage: Stage) -> None:
    epoch = stage.welcome()
    await stage.settle()
    times = (SETTINGS.heartbeat_ms, SETTINGS.heartbeat_refusing_ms)
    assert stage.car.heard == [wire.Welcome(epoch, "boot", LEASE_MS, MARGIN_MS, *times)]
    assert stage.other.heard == []
    assert stage.links.heard_ms(VEHICLE) == stage.clock.now_ms()
    assert stage.links.heard_ms(OTHER) == 0


async def test_another_version_of_the_protocol_is_refused(stage: Stage) -> None:
    stage.car.hello(protocol=wire.PROTOCOL + 1)
    await stage.settle()
    assert stage.events == []
    assert stage.car.heard == [wire.Fenced(Epoch(0), "protocol_unsupported")]


async def test_a_car_that_the_fleet_does_not_know_hears_so(stage: Stage) -> None:
    stage.links.fence(VEHICLE, Epoch(0))
    await stage.settle()
    assert stage.car.heard == [wire.Fenced(Epoch(0), "vehicle_unknown")]


async def test_no_car_offers_more_slots_than_a_car_can_have(stage: Stage) -> None:
    for said, taken in ((10**9, SLOTS_MAX), (-1, 0), (2, 2)):
        offered = msgspec.structs.replace(CAPABILITY, slots=said)
        epoch = await stage.connect()
        stage.car.hello(capability=offered)
        await stage.say(wire.CapabilityReport(epoch, offered))
        hello, report = stage.events
        assert isinstance(hello, ev.VehicleConnected)
        assert isinstance(report, ev.CapabilityChanged)
        assert hello.capability.slots == report.capability.slots == taken


# Messages of an epoch.


async def test_a_heartbeat_is_answered_and_the_fleet_does_not_hear_of_it(stage: Stage) -> None:
    epoch = await stage.connect()
    stage.clock.advance(4_000)
    await stage.say(wire.Heartbeat(epoch, 123, True))
    assert stage.car.heard == [wire.HeartbeatAnswer(epoch, 123)]
    assert stage.events == []
    assert stage.links.heard_ms(VEHICLE) == stage.clock.now_ms()


async def test_what_a_car_reports_reaches_the_fleet(stage: Stage) -> None:
    epoch = await stage.connect()
    larger = msgspec.structs.replace(CAPABILITY, memory_mb=9_000)
    await stage.say(wire.PermitReport(epoch, UNPLUGGED))
    await stage.say(wire.CapabilityReport(epoch, larger))
    await stage.say(wire.Goodbye(epoch))
    now_ms = stage.clock.now_ms()
    assert stage.events == [
        ev.PermitChanged(now_ms, VEHICLE, epoch, UNPLUGGED),
        ev.CapabilityChanged(now_ms, VEHICLE, epoch, larger),
        ev.VehicleLeft(now_ms, VEHICLE, epoch),
    ]


async def test_a_message_of_another_epoch_is_fenced_and_goes_no_further(stage: Stage) -> None:
    epoch = await stage.connect()
    await stage.say(wire.Goodbye(Epoch(epoch + 1)))
    await stage.say(wire.Heartbeat(Epoch(epoch - 1), 1, True))
    assert stage.events == []
    assert stage.car.heard == [
        wire.Fenced(Epoch(epoch + 1), "epoch_over"),
        wire.Fenced(Epoch(epoch - 1), "epoch_over"),
    ]


async def test_a_fence_ends_its_own_epoch_only(stage: Stage) -> None:
    old = await stage.connect()
    epoch = await stage.connect()
    stage.links.fence(VEHICLE, old)
    await stage.say(wire.Heartbeat(epoch, 1, True))
    assert stage.car.heard == [wire.Fenced(old, "epoch_over"), wire.HeartbeatAnswer(epoch, 1)]
    stage.links.fence(VEHICLE, epoch)
    await stage.say(wire.Heartbeat(epoch, 2, True))
    assert stage.car.heard[-1] == wire.Fenced(epoch, "epoch_over")
    assert stage.links.heard_ms(VEHICLE) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xff",
        b"{}",
        wire.ENCODER.encode(wire.Welcome(Epoch(1), "boot", 1, 1, 1, 1)),
        wire.ENCODER.encode(["Heartbeat", 1]),
        wire.ENCODER.encode(["Heartbeat", "1", 1, True]),
        wire.ENCODER.encode(["PermitReport", 1, ["bored"]]),
    ],
)
async def test_what_is_no_message_is_dropped(stage: Stage, body: bytes) -> None:
    await stage.connect()
    await stage.say(body)
    assert stage.events == []
    assert stage.car.heard == []


async def test_what_can_not_be_sent_is_lost_and_nothing_else(stage: Stage) -> None:
    epoch = await stage.connect()
    stage.broker.cut(stage.bus)
    stage.links.send(VEHICLE, wire.HelloWanted())
    stage.links.fence(VEHICLE, epoch)
    stage.broker.mend(stage.bus)
    await stage.settle()
    assert stage.car.heard == []


# Silence.


async def test_a_silent_car_is_told_once_and_once_more_when_it_speaks_again(stage: Stage) -> None:
    epoch = await stage.connect()
    heard_ms = stage.clock.now_ms()
    stage.pass_ms(SETTINGS.silence_ms - 1)
    assert stage.events == []
    stage.pass_ms(1)
    now_ms = stage.clock.now_ms()
    assert stage.events == [ev.VehicleSilent(now_ms, VEHICLE, epoch, heard_ms)]
    stage.pass_ms(10 * SETTINGS.silence_ms)
    assert len(stage.events) == 1
    await stage.say(wire.Heartbeat(epoch, 1, True))
    now_ms = stage.clock.now_ms()
    assert stage.events[1:] == [ev.VehicleHeard(now_ms, VEHICLE, epoch)]
    await stage.say(wire.Heartbeat(epoch, 2, True))
    assert len(stage.events) == 2
    stage.pass_ms(SETTINGS.silence_ms)
    assert len(stage.told(ev.VehicleSilent)) == 2


@pytest.mark.parametrize(
    "message",
    [
        wire.PermitReport(Epoch(1), ()),
        wire.CapabilityReport(Epoch(1), CAPABILITY),
        wire.Receipts(Epoch(1), ()),
        wire.Heartbeat(Epoch(1), 1, True),
    ],
)
async def test_any_message_is_a_sign_of_life(stage: Stage, message: wire.UpMessage) -> None:
    await stage.connect()
    stage.clock.advance(SETTINGS.silence_ms - 1)
    await stage.say(message)
    stage.pass_ms(SETTINGS.silence_ms - 1)
    assert stage.told(ev.VehicleSilent) == []


async def test_a_message_of_an_epoch_that_is_over_is_none(stage: Stage) -> None:
    await stage.connect()
    stage.clock.advance(SETTINGS.silence_ms - 1)
    await stage.say(wire.Heartbeat(Epoch(99), 1, True))
    stage.pass_ms(1)
    assert len(stage.told(ev.VehicleSilent)) == 1


async def test_a_car_that_refuses_may_be_silent_for_long(stage: Stage) -> None:
    await stage.connect(UNPLUGGED)
    stage.pass_ms(SETTINGS.silence_refusing_ms - 1)
    assert stage.events == []
    stage.pass_ms(1)
    assert len(stage.told(ev.VehicleSilent)) == 1


async def test_the_limit_follows_what_the_car_says(stage: Stage) -> None:
    epoch = await stage.connect(UNPLUGGED)
    await stage.say(wire.PermitReport(epoch, ()))
    stage.pass_ms(SETTINGS.silence_ms)
    assert len(stage.told(ev.VehicleSilent)) == 1
    await stage.say(wire.Heartbeat(epoch, 1, False))
    stage.pass_ms(SETTINGS.silence_ms)
    assert len(stage.told(ev.VehicleSilent)) == 1
    await stage.connect()
    stage.pass_ms(SETTINGS.silence_ms)
    assert len(stage.told(ev.VehicleSilent)) == 1


async def test_another_process_that_refuses_has_the_long_limit_too(stage: Stage) -> None:
    epoch = await stage.connect()
    stage.car.hello(UNPLUGGED)
    await stage.settle()
    stage.links.fence(VEHICLE, epoch)
    stage.welcome()
    stage.pass_ms(SETTINGS.silence_refusing_ms - 1)
    assert stage.told(ev.VehicleSilent) == []


async def test_only_those_that_are_silent_are_told(stage: Stage) -> None:
    await stage.connect()
    stage.clock.advance(1)
    await stage.connect(car=stage.other)
    stage.pass_ms(SETTINGS.silence_ms - 1)
    assert [event.vehicle_id for event in stage.told(ev.VehicleSilent)] == [VEHICLE]


async def test_after_a_restart_every_car_counts_as_heard(stage: Stage) -> None:
    stage.links.resume([(VEHICLE, Epoch(5), True), (OTHER, Epoch(6), False)])
    stage.pass_ms(SETTINGS.silence_ms)
    silent = [(event.vehicle_id, event.epoch) for event in stage.told(ev.VehicleSilent)]
    assert silent == [(VEHICLE, 5)]
    stage.other.say(wire.Heartbeat(Epoch(6), 1, False))
    await stage.settle()
    assert stage.other.heard == [wire.HeartbeatAnswer(Epoch(6), 1)]


async def test_a_silence_that_a_full_inbox_refused_is_told_later(stage: Stage) -> None:
    epoch = await stage.connect()
    stage.is_full = True
    stage.pass_ms(SETTINGS.silence_ms)
    stage.is_full = False
    stage.pass_ms(1_000)
    assert len(stage.told(ev.VehicleSilent)) == 1
    stage.is_full = True
    await stage.say(wire.Heartbeat(epoch, 1, True))
    stage.is_full = False
    await stage.say(wire.Heartbeat(epoch, 2, True))
    assert len(stage.told(ev.VehicleHeard)) == 1


async def test_a_change_that_a_full_inbox_refused_is_asked_for_anew(stage: Stage) -> None:
    epoch = await stage.connect()
    stage.is_full = True
    await stage.say(wire.PermitReport(epoch, UNPLUGGED))
    await stage.say(wire.CapabilityReport(epoch, CAPABILITY))
    assert stage.car.heard == [wire.HelloWanted(), wire.HelloWanted()]


# Receipts.


def receipt(**fields: object) -> wire.Receipt:
    """The receipt of an attempt."""
    return msgspec.structs.replace(wire.Receipt(LEASE, UNIT), **fields)


async def hand_in(stage: Stage, *receipts: wire.Receipt) -> Epoch:
    """A car hands receipts in."""
    epoch = await stage.connect()
    await stage.say(wire.Receipts(epoch, receipts))
    return epoch


async def test_a_result_comes_with_its_output(stage: Stage) -> None:
    payload = b"{}\n"
    result = receipt(
        answers=2,
        answers_failed=1,
        prompt_tokens=3,
        completion_tokens=4,
        energy_mwh=5,
        runtime_ms=6,
        digest=hashlib.sha256(payload).digest(),
        payload=payload,
    )
    epoch = await hand_in(stage, result)
    attempt = (stage.clock.now_ms(), VEHICLE, epoch, LEASE, UNIT)
    assert stage.events == [ev.AttemptReturned(*attempt, 2, 1, 3, 4, 5, 6)]
    assert stage.blobs == [Blob(output_name(LEASE, UNIT), payload)]


async def test_a_large_output_was_put_before_its_receipt(stage: Stage) -> None:
    await hand_in(stage, receipt(answers=2, digest=b"of the object"))
    assert len(stage.told(ev.AttemptReturned)) == 1
    assert stage.blobs == []


async def test_an_output_that_does_not_match_its_digest_is_a_failure(stage: Stage) -> None:
    epoch = await hand_in(stage, receipt(payload=b"{}", digest=b"another", energy_mwh=5))
    attempt = (stage.clock.now_ms(), VEHICLE, epoch, LEASE, UNIT)
    words = "the output does not match its digest"
    assert stage.events == [ev.AttemptFailed(*attempt, Failure.OUTPUT_INCOMPLETE, words, 5)]
    assert stage.blobs == []


async def test_an_output_too_large_for_a_message_is_a_failure(stage: Stage) -> None:
    for size, kind in (
        (wire.INLINE_BYTES_MAX, ev.AttemptReturned),
        (wire.INLINE_BYTES_MAX + 1, ev.AttemptFailed),
    ):
        payload = b"x" * size
        await hand_in(stage, receipt(payload=payload, digest=hashlib.sha256(payload).digest()))
        assert [type(event) for event in stage.events] == [kind]
    assert [len(blob.body or b"") for blob in stage.blobs] == [wire.INLINE_BYTES_MAX]


async def test_a_failure_is_told_with_its_reason(stage: Stage) -> None:
    failed = receipt(failure=Failure.OUT_OF_MEMORY, detail="why", energy_mwh=5)
    epoch = await hand_in(stage, failed)
    attempt = (stage.clock.now_ms(), VEHICLE, epoch, LEASE, UNIT)
    assert stage.events == [ev.AttemptFailed(*attempt, Failure.OUT_OF_MEMORY, "why", 5)]


async def test_a_lease_that_is_given_back_is_told_with_its_reason(stage: Stage) -> None:
    ending = LeaseEnding.OWNER_RETURNED
    released = receipt(unit_id=WHOLE_LEASE, ending=ending, detail="why", energy_mwh=5)
    epoch = await hand_in(stage, released)
    lease = (stage.clock.now_ms(), VEHICLE, epoch, LEASE)
    assert stage.events == [ev.LeaseReleased(*lease, ending, "why", 5)]


async def test_receipts_keep_their_order(stage: Stage) -> None:
    units = [WorkUnitId(number) for number in (3, 1, 2)]
    failure = Failure.STOPPED
    await hand_in(stage, *(receipt(unit_id=unit_id, failure=failure) for unit_id in units))
    assert [event.unit_id for event in stage.told(ev.AttemptFailed)] == units


@pytest.mark.parametrize(("said", "taken"), [(-1, 0), (2**63, FIGURE_MAX), (17, 17)])
async def test_what_a_car_claims_stays_within_reason(stage: Stage, said: int, taken: int) -> None:
    figures = dict.fromkeys(
        ("prompt_tokens", "completion_tokens", "energy_mwh", "runtime_ms"), said
    )
    long = "x" * 10_000
    await hand_in(
        stage,
        receipt(answers=1, **figures),
        receipt(failure=Failure.STOPPED, detail=long, energy_mwh=said),
        receipt(ending=LeaseEnding.OVERDUE, detail=long, energy_mwh=said),
    )
    returned, failed, released = stage.events
    assert isinstance(returned, ev.AttemptReturned)
    assert {getattr(returned, name) for name in figures} == {taken}
    assert isinstance(failed, ev.AttemptFailed)
    assert isinstance(released, ev.LeaseReleased)
    for event in (failed, released):
        assert event.energy_mwh == taken
        assert len(event.detail) == DETAIL_CHARACTERS_MAX
