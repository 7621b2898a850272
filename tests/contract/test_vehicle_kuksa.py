"""The kuksa vehicle: what a databroker says becomes readings, and what it doesn't is missing."""

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from structlog.testing import capture_logs

from terafleet.core.readings import SENSORS
from tests.contract.vehicle_contract import (
    RealPassing,
    VehicleContract,
    VehicleWorld,
    drive,
    set_all,
)

pytest.importorskip("kuksa.val.v2", reason="needs kuksa-client: install the extra kuksa")

import grpc
from kuksa.val.v2 import types_pb2

from terafleet.agent.adapters.vehicle import kuksa_signals as vss
from terafleet.agent.adapters.vehicle.kuksa import (
    RECONNECT_MS_MAX,
    RECONNECT_MS_MIN,
    KuksaVehicle,
    reconnect_pause_ms,
)
from tests.contract.kuksa_broker import HOST, Databroker
from tests.contract.kuksa_stage import (
    PARKED,
    PARKED_READINGS,
    PLACES,
    SILENCE_MS,
    KuksaWorld,
    running_world,
    settings_for,
    until_missing,
)


@pytest.fixture
def world() -> Iterator[KuksaWorld]:
    """A broker that has no value of any signal."""
    yield from running_world()


@pytest.fixture
def parked(world: KuksaWorld) -> KuksaWorld:
    """The same, and all signals say that the car is parked."""
    for path, said in PARKED.items():
        world.broker.set(path, said)
    return world


class TestKuksa(VehicleContract):
    """The contract of all vehicle adapters."""

    async def test_a_sample_comes_at_each_interval(self, world: VehicleWorld) -> None:
        """The signals are found after the first sample, which is one change more."""
        values = await set_all(world)
        async with drive(world, world.sample_ms) as one:
            await one.until_says(values)
            begin, begin_ms = len(one.samples), world.passing.clock.now_ms()
            await one.until(lambda: len(one.samples) >= begin + 4, 4 * world.sample_ms)
            elapsed_ms = world.passing.clock.now_ms() - begin_ms
            assert len(one.samples) - begin <= elapsed_ms // world.sample_ms + 1


# What the broker knows.


async def test_signals_that_the_broker_does_not_know_are_missing_and_not_subscribed(
    parked: KuksaWorld,
) -> None:
    del parked.broker.points[vss.AMBIENT]
    del parked.broker.points[vss.BATTERY_POWER]
    async with drive(parked, 20_000) as one:
        nothing = {"ambient_temperature_c": None, "charging_mw": None}
        await one.until(lambda: one.says_all(PARKED_READINGS | nothing), 2_000)
        await parked.until_questioned(2)
        (subscribed,) = parked.broker.subscribed
        table = vss.SignalTable("Central", 0, PLACES)
        assert set(subscribed) == {path for path in parked.broker.points if table.is_urgent(path)}


async def test_quantities_are_asked_for_and_not_streamed(parked: KuksaWorld) -> None:
    quantities = {vss.SOC, vss.SPEED, vss.BATTERY_POWER}
    for path in parked.broker.points.keys() - quantities:
        del parked.broker.points[path]
    parked.broker.set(vss.SOC, 44.0)
    async with drive(parked, 20_000) as one:
        await one.until_says({"soc_percent": 44.0, "is_parked": None, "charging_mw": 7_400_000})
        parked.broker.set(vss.SOC, 43.0)
        parked.broker.set(vss.SPEED, 7.0)
        await one.until_says({"soc_percent": 43.0, "is_parked": False})
    assert parked.broker.subscribed == []


async def test_a_signal_that_may_not_be_read_is_missing_alone(parked: KuksaWorld) -> None:
    parked.broker.denied = {vss.SEAT_OCCUPIED}
    with capture_logs() as logs:
        async with drive(parked, 20_000) as one:
            without = PARKED_READINGS | {"is_driver_present": None}
            await one.until(lambda: one.says_all(without), 2_000)
    (found,) = logs
    assert found["event"] == "vehicle_broker_found"
    assert found["refused"] == [vss.SEAT_OCCUPIED]
    assert found["signals"] == len(parked.broker.points) - 1


async def test_a_right_that_is_taken_away_makes_a_reading_missing(parked: KuksaWorld) -> None:
    async with drive(parked, 20_000) as one:
        await one.until_says(PARKED_READINGS)
        parked.broker.denied = {vss.SEAT_OCCUPIED}
        without = PARKED_READINGS | {"is_driver_present": None}
        await one.until(lambda: one.says_all(without), 4 * SILENCE_MS)


async def test_the_position_and_without_places_the_network_are_not_asked(
    parked: KuksaWorld,
) -> None:
    parked.changes = {"places": {}}
    async with drive(parked, 20_000) as one:
        await one.until_says(PARKED_READINGS | {"place": None})
    asked = {path for paths in parked.broker.subscribed for path in paths}
    assert not [path for path in asked if "Location" in path or path == vss.WIFI_NAME]


async def test_a_broker_that_knows_nothing_is_asked_again(parked: KuksaWorld) -> None:
    # A survey that is under way finds some signals; the others come with the next.
    parked.changes = {"silence_ms": 300}
    known, parked.broker.points = parked.broker.points, {}
    with capture_logs() as logs:
        async with drive(parked, 100) as one:
            await parked.until_questioned(100)
            assert one.says_all(dict.fromkeys(SENSORS))
            assert [log.get("cause") for log in logs] == ["signals_unknown"]
            parked.broker.points = known
            await one.until(lambda: one.says_all(PARKED_READINGS), 8_000)


async def test_signals_that_come_later_are_found(parked: KuksaWorld) -> None:
    parked.changes = {"silence_ms": 300}
    point = parked.broker.points.pop(vss.AMBIENT)
    async with drive(parked, 100) as one:
        await one.until(lambda: one.says_all(PARKED_READINGS | {"ambient_temperature_c": None}), 50)
        parked.broker.points[vss.AMBIENT] = point
        await one.until(lambda: one.says_all(PARKED_READINGS), 6_000)


# What breaks.


async def test_a_restart_within_the_silence_is_not_noticed(parked: KuksaWorld) -> None:
    parked.changes = {"silence_ms": 10_000}
    async with drive(parked, 50) as one:
        await one.until_says(PARKED_READINGS)
        seen = len(one.samples)
        parked.broker.stop()
        parked.broker.start()
        subscriptions = len(parked.broker.subscribed)
        await one.until(lambda: len(parked.broker.subscribed) > subscriptions, 3_000)
        assert [sample for sample in one.samples[seen:] if sample.soc_percent is None] == []
        parked.broker.set(vss.SEAT_OCCUPIED, True)
        await one.until_says(PARKED_READINGS | {"is_driver_present": True})


async def test_readings_are_missing_while_the_broker_is_gone_and_it_is_told_once(
    parked: KuksaWorld,
) -> None:
    with capture_logs() as logs:
        async with drive(parked, 100) as one:
            await one.until_says(PARKED_READINGS)
            parked.broker.stop()
            gone_ms = parked.passing.clock.now_ms()
            await until_missing(one)
            silent_ms = (
                next(
                    sample.at_ms
                    for sample in one.samples
                    if sample.at_ms > gone_ms and sample.soc_percent is None
                )
                - gone_ms
            )
            # It was heard last at some time before it went.
            assert SILENCE_MS / 2 <= silent_ms <= SILENCE_MS + 100
            await parked.passing.pass_ms(1_500)
            parked.broker.start()
            await one.until(lambda: one.says_all(PARKED_READINGS), 3_000)
    events = [(log["event"], log.get("cause")) for log in logs]
    assert events[0] == ("vehicle_broker_found", None)
    assert sorted(events[1:]) == sorted(set(events[1:])), "nothing is told twice"
    assert ("vehicle_broker_lost", "unreachable") in events


async def test_a_broker_that_hangs_is_left_in_time(parked: KuksaWorld) -> None:
    async with drive(parked, 20_000) as one:
        await one.until_says(PARKED_READINGS)
        parked.broker.is_hanging = True
        await until_missing(one)
        parked.broker.is_hanging = False
        await one.until(lambda: one.says_all(PARKED_READINGS), 3_000)


async def test_a_stream_that_says_nothing_more_is_healed_by_asking(parked: KuksaWorld) -> None:
    async with drive(parked, 20_000) as one:
        await one.until_says(PARKED_READINGS)
        parked.broker.drops_changes = True
        parked.broker.set(vss.SEAT_OCCUPIED, True)
        present = PARKED_READINGS | {"is_driver_present": True}
        await one.until(lambda: one.says_all(present), SILENCE_MS)
        assert len(parked.broker.subscribed) == 1


async def test_an_answer_that_was_long_on_its_way_undoes_no_newer_change(
    parked: KuksaWorld,
) -> None:
    async with drive(parked, 20_000) as one:
        await one.until_says(PARKED_READINGS)
        parked.broker.answer_s = 0.2
        await parked.until_questioned(1)
        parked.broker.set(vss.SEAT_OCCUPIED, True)
        await one.until_says({"is_driver_present": True})
        seen = len(one.samples)
        parked.broker.answer_s = 0
        await parked.until_questioned(2)
        assert {sample.is_driver_present for sample in one.samples[seen - 1 :]} == {True}


@pytest.mark.parametrize(
    "code",
    [
        None,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    ],
)
async def test_a_stream_that_ends_is_begun_anew(
    parked: KuksaWorld, code: grpc.StatusCode | None
) -> None:
    async with drive(parked, 20_000) as one:
        await one.until_says(PARKED_READINGS)
        await one.until(lambda: bool(parked.broker.streams), 1_000)
        parked.broker.end_streams(code)
        await one.until(lambda: len(parked.broker.subscribed) == 2, 2_000)
        parked.broker.set(vss.SEAT_OCCUPIED, True)
        await one.until_says(PARKED_READINGS | {"is_driver_present": True})


async def test_an_answer_with_too_few_values_ends_the_connection(parked: KuksaWorld) -> None:
    with capture_logs() as logs:
        async with drive(parked, 100) as one:
            await one.until_says(PARKED_READINGS)
            parked.broker.says_too_little = True
            await one.until(lambda: len(logs) > 1, 4 * SILENCE_MS)
    assert logs[1]["cause"] == "answer_odd"


async def test_bytes_that_are_no_message_are_no_value(caplog: pytest.LogCaptureFixture) -> None:
    odd: Any = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"\xff\xff")
    handler = grpc.method_handlers_generic_handler("kuksa.val.v2.VAL", {"GetValue": odd})
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    broker = Databroker()
    broker.port = port
    world = KuksaWorld(broker)
    try:
        with capture_logs() as logs:
            async with drive(world, 50) as one:
                await one.until(lambda: bool(logs), 2_000)
                assert one.says_all(dict.fromkeys(SENSORS))
    finally:
        server.stop(None).wait()
    assert logs[0]["cause"] == "signals_unknown"
    assert all(record.name == "grpc._common" for record in caplog.records), "gRPC's own words"


async def test_a_message_beyond_the_bound_is_not_taken(parked: KuksaWorld) -> None:
    async with drive(parked, 100) as one:
        await one.until_says(PARKED_READINGS)
        parked.broker.set(vss.SWITCH, "x" * 1_000_000)
        await one.until(lambda: len(parked.broker.subscribed) > 1, 3_000)
        # Each signal is asked for alone then, and this one can't be read.
        parked.broker.set(vss.SEAT_OCCUPIED, True)
        present = PARKED_READINGS | {"is_driver_present": True}
        await one.until(lambda: one.says_all(present), 3_000)


ODD = (
    True,
    "126",
    -1.5,
    math.nan,
    math.inf,
    10**9,
    "",
    "x" * 200_000,
    "\x00\x1b[2J",
    ("WIFI",) * 1_000,
    (),
    None,
    types_pb2.Value(uint64=2**64 - 1),
    types_pb2.Value(int64=-(2**63)),
    types_pb2.Value(double=1e308),
    types_pb2.Value(bool_array=types_pb2.BoolArray(values=[True])),
    types_pb2.Value(),
)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: f"{type(odd).__name__}-{str(odd)[:12]}")
async def test_whatever_a_signal_says_the_others_go_on(parked: KuksaWorld, odd: Any) -> None:
    async with drive(parked, 20_000) as one:
        await one.until_says(PARKED_READINGS)
        for path in parked.broker.points:
            if path not in (vss.SOC_SHOWN, vss.SOC):
                parked.broker.set(path, odd)
        parked.broker.set(vss.SOC_SHOWN, 33.0)
        await one.until(lambda: one.says("soc_percent", 33.0), 2_000)
        for path, said in PARKED.items():
            parked.broker.set(path, said)
        for path in parked.broker.points.keys() - PARKED.keys():
            parked.broker.set(path, None)
        await one.until(lambda: one.says_all(PARKED_READINGS), 2_000)


def test_pauses_double_up_to_a_bound_and_chance_takes_off_half() -> None:
    pauses = [reconnect_pause_ms(failures, 0) for failures in range(1_000)]
    assert pauses[:4] == [RECONNECT_MS_MIN * factor for factor in (1, 2, 4, 8)]
    assert pauses[-1] == RECONNECT_MS_MAX
    assert reconnect_pause_ms(0, 0.5) == 0.75 * RECONNECT_MS_MIN


async def test_pauses_grow_while_the_broker_is_away() -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        await asyncio.sleep(0 if pause_s < 1_000 else 60)

    broker = Databroker()
    broker.port = 1
    passing = RealPassing()
    vehicle = KuksaVehicle(settings_for(broker), 10**9, passing.clock, sleep, lambda: 0.0)
    task = asyncio.create_task(vehicle.run(lambda _: None))
    deadline_ms = passing.clock.now_ms() + 5_000
    while len([pause_s for pause_s in pauses if 0.1 < pause_s < 1_000]) < 4:
        assert passing.clock.now_ms() < deadline_ms
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    retries = [pause_s for pause_s in pauses if 0.1 < pause_s < 1_000]
    assert retries[:4] == [0.25, 0.5, 1.0, 2.0]
