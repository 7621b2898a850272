"""The message bus dies, falls silent and comes back, and the control plane comes back, while cars
compute: nothing is lost, and no request is answered twice."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from openai import OpenAI

from terafleet.core.settings import FleetSettings
from tests.system.fleet_stage import FleetStage, answered, car_settings, kill, stage, submit_file
from tests.system.slow_encoder import add_slow_encoder, slow_file

__all__ = ["stage"]

REQUESTS = 20_000
REQUESTS_MANY = 40_000
SILENT_S = 25.0
"""Longer than a lease stands in the control plane (20 s), and than a dead link stays unnoticed."""


@contextmanager
def stopped(process_id: int) -> Iterator[None]:
    """A process that is there and does nothing."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)


def check_all_answered_once(
    stage: FleetStage, client: OpenAI, batch_id: str, requests: int
) -> None:
    batch = stage.finish(client, batch_id)
    assert batch.status == "completed", batch
    assert batch.request_counts.completed == requests
    names = answered(client, batch)
    assert len(names) == requests
    assert set(names) == {f"request-{number}" for number in range(requests)}


def test_a_killed_bus_comes_back_by_itself(stage: FleetStage) -> None:
    stage.start(cars=2)
    client = stage.client()
    batch = stage.submit(client, REQUESTS)
    stage.until_done(client, batch.id, REQUESTS // 5)
    first = stage.bus_process()
    # Something is in the way of the first tries to start it again, as a full disk might be.
    in_the_way = stage.fleet.data / "bus" / "nats-server.conf"
    in_the_way.unlink()
    in_the_way.mkdir()
    kill(first)
    time.sleep(2.5)
    in_the_way.rmdir()
    check_all_answered_once(stage, client, batch.id, REQUESTS)
    assert stage.bus_process() != first
    # A grant that the bus took with it is unknown to the car; no other loss is allowed.
    assert set(stage.lost()) <= {"lease_unknown"}
    assert stage.command("status").returncode == 0


def test_a_bus_that_is_silent_for_longer_than_leases_stand(tmp_path: Path) -> None:
    # A gateway that was asked for a batch's files in the silence is asked again after a while.
    asked_again = msgspec.to_builtins(FleetSettings(gateway_retry_ms=5_000))
    with FleetStage(tmp_path, {"shard": {"fleet": asked_again}}) as stage:
        stage.start(cars=2)
        client = stage.client()
        batch = stage.submit(client, REQUESTS_MANY)
        stage.until_done(client, batch.id, REQUESTS_MANY // 10)
        with stopped(stage.bus_process()):
            time.sleep(SILENT_S)
        check_all_answered_once(stage, client, batch.id, REQUESTS_MANY)
        assert set(stage.lost()) <= {"link_silent", "lease_unknown"}
        stage.until(lambda: stage.states() == ["idle", "idle"], "both cars are back")


def test_a_restart_of_the_control_plane_restarts_no_running_work(
    stage: FleetStage, tmp_path: Path
) -> None:
    stage.fleet.start_plane()
    add_slow_encoder(stage, tmp_path / "slow")
    for name in ("car-0", "car-1"):
        stage.add_car(name, car_settings(slots=1, runtime="onnx"))
    stage.until(lambda: stage.states().count("idle") == 2, "both cars are idle")
    requests = 8
    client = stage.client()
    batch = submit_file(client, slow_file(requests, texts=30))
    stage.until(lambda: sum(map(stage.has_runtime, stage.fleet.cars)) == 2, "both compute")
    stage.until_done(client, batch.id, 1)
    runtimes = [stage.runtime_process(name) for name in stage.fleet.cars]
    assert stage.fleet.plane is not None
    stage.fleet.plane.stop()
    stage.fleet.start_plane()
    stage.until_done(client, batch.id, 3)
    stage.fleet.plane.kill()
    stage.fleet.start_plane()
    check_all_answered_once(stage, client, batch.id, requests)
    assert [stage.runtime_process(name) for name in stage.fleet.cars] == runtimes
    # A lease that was committed but never sent is unknown to the car; no other loss is allowed.
    assert set(stage.lost()) <= {"lease_unknown"}
