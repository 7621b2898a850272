"""The shard's links: heartbeats end there, the fleet hears only changes and silences."""

import msgspec
import pytest

from terafleet.control.shard.links import (
    DETAIL_CHARACTERS_MAX,
    MODEL_ID_CHARACTERS_MAX,
    SLOTS_MAX,
)
from terafleet.core import events as ev
from terafleet.core.ids import Epoch, ModelId
from terafleet.core.reasons import Failure
from terafleet.protocol import agent as wire
from tests.contract.links_stage import (
    CAPABILITY,
    LEASE,
    LEASE_MS,
    MARGIN_MS,
    OTHER,
    SETTINGS,
    UNIT,
    UNPLUGGED,
    VEHICLE,
    Stage,
)


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
    assert stage.car.heard == [wire.Welcome(epoch, "boot", LEASE_MS, MARGIN_MS, *times, 7)]
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


async def test_a_model_that_a_car_cant_keep_reaches_the_fleet(stage: Stage) -> None:
    epoch = await stage.connect()
    failure = Failure.OUT_OF_MEMORY
    await stage.say(wire.LoadFailed(epoch, ModelId("m"), failure, "x" * 10_000))
    await stage.say(wire.LoadFailed(epoch, ModelId("m" * 10_000), failure, ""))
    first, second = stage.told(ev.LoadFailed)
    assert (first.vehicle_id, first.epoch, first.model_id) == (VEHICLE, epoch, "m")
    assert (first.failure, first.detail) == (failure, "x" * DETAIL_CHARACTERS_MAX)
    assert second.model_id == "m" * MODEL_ID_CHARACTERS_MAX


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
        wire.ENCODER.encode(wire.Welcome(Epoch(1), "boot", 1, 1, 1, 1, 1)),
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
        wire.LoadFailed(Epoch(1), ModelId("m"), Failure.OUT_OF_MEMORY, ""),
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
