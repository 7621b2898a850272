"""The owner comes back, the agent dies, the link is cut: all while the car computes."""

import time
from pathlib import Path

import pytest

from terafleet.agent.service import guard_codec
from terafleet.core.guard_events import ReadingsChanged
from terafleet.engine.adapters.sqlite_format import open_reader
from tests.system.fleet_stage import (
    FleetStage,
    answered,
    car_settings,
    cpu_ticks,
    is_alive,
    kill,
    stage,
    submit_file,
)
from tests.system.slow_encoder import add_slow_encoder, slow_file

__all__ = ["stage"]

LOOK_S = 0.02
CUT_S = 5.0


def start_computing(stage: FleetStage, folder: Path, cars: int) -> None:
    """Start so many cars that can run the slow model, with one slot each."""
    stage.fleet.start_plane()
    add_slow_encoder(stage, folder / "slow")
    for number in range(cars):
        stage.add_car(f"car-{number}", car_settings(slots=1, runtime="onnx"))
    stage.until(lambda: stage.states().count("idle") == cars, "all cars are idle")


def computing_process(stage: FleetStage, car: str) -> int:
    """A car's runtime, once it is at work on a unit."""
    stage.until(lambda: stage.has_runtime(car), f"{car} has a runtime")
    process_id = stage.runtime_process(car)
    before = cpu_ticks(process_id)
    assert before is not None
    # Far more than it takes to load the libraries and the model.
    stage.until(lambda: (cpu_ticks(process_id) or 0) > before + 100, f"{car} computes")
    return process_id


def driver_read_ms(stage: FleetStage, car: str) -> int:
    """When the agent read that somebody is in the car, by its journal; it keeps wall time."""
    connection = open_reader(stage.fleet.car_folder(car) / "record" / "record.sqlite")
    try:
        groups = connection.execute("SELECT events FROM journal ORDER BY sequence").fetchall()
    finally:
        connection.close()
    codec = guard_codec()
    for (body,) in groups:
        for event in codec.decode_events(body):
            if isinstance(event, ReadingsChanged) and event.readings.is_driver_present:
                return event.readings.at_ms
    pytest.fail("the agent has read nothing of a driver")


def test_an_owner_who_comes_back_has_the_car_at_once(stage: FleetStage, tmp_path: Path) -> None:
    start_computing(stage, tmp_path, cars=2)
    client = stage.client()
    batch = submit_file(client, slow_file(requests=8, texts=25))
    process_id = computing_process(stage, "car-0")
    stage.turn("car-0", is_driver_present=True)

    busy_ms, ticks = 0, cpu_ticks(process_id)
    deadline_s = time.monotonic() + 10
    while ticks is not None and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
        before, ticks = ticks, cpu_ticks(process_id)
        if ticks is not None and ticks > before:
            busy_ms = time.time_ns() // 1_000_000
    gone_ms = time.time_ns() // 1_000_000
    read_ms = driver_read_ms(stage, "car-0")
    print(f"after the reading: busy until {busy_ms - read_ms} ms, gone at {gone_ms - read_ms} ms")
    assert ticks is None, "the runtime lives on"
    assert busy_ms - read_ms <= 1_000
    assert gone_ms - read_ms <= 2_000

    batch = stage.finish(client, batch.id)
    assert batch.status == "completed"
    assert sorted(answered(client, batch)) == [f"request-{number}" for number in range(8)]
    # Its unit may have ended at that moment: then the next one came too late, or none came.
    assert set(stage.lost()) <= {"owner_returned", "not_permitted"}
    car = stage.vehicle("car-0")
    assert (car.state, car.leases) == ("refusing", 0)
    assert "driver_present" in car.refusals

    stage.turn("car-0")
    stage.until(lambda: stage.vehicle("car-0").state == "idle", "the car permits again")


def test_no_runtime_outlives_its_agent(stage: FleetStage, tmp_path: Path) -> None:
    start_computing(stage, tmp_path, cars=1)
    client = stage.client()
    batch = submit_file(client, slow_file(requests=4, texts=30))
    process_id = computing_process(stage, "car-0")
    kill(stage.fleet.cars["car-0"].process.pid)
    deadline_s = time.monotonic() + 2
    while is_alive(process_id) and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
    assert not is_alive(process_id)

    stage.fleet.cars["car-0"].kill()
    stage.fleet.start_car("car-0")
    batch = stage.finish(client, batch.id)
    assert batch.status == "completed"
    assert sorted(answered(client, batch)) == [f"request-{number}" for number in range(4)]


def test_work_goes_on_while_the_link_is_cut(stage: FleetStage, tmp_path: Path) -> None:
    start_computing(stage, tmp_path, cars=1)
    client = stage.client()
    batch = submit_file(client, slow_file(requests=6, texts=45))
    process_id = computing_process(stage, "car-0")
    before = stage.vehicle("car-0")
    ticks = cpu_ticks(process_id)
    assert ticks is not None
    stage.turn("car-0", cut_link_s=CUT_S)
    stage.until(lambda: stage.vehicle("car-0").epoch > before.epoch, "the car is back")
    ticks_after = cpu_ticks(process_id)
    assert ticks_after is not None
    assert ticks_after > ticks + 100, "it did not compute through the cut"
    batch = stage.finish(client, batch.id)
    assert batch.status == "completed"
    assert len(answered(client, batch)) == 6
    assert stage.lost() == {}
    assert stage.runtime_process("car-0") == process_id
