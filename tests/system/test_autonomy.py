"""A car that is left alone: no control plane, power cuts, a twin, updates, and clocks that jump."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from terafleet.agent.app import Exit
from terafleet.agent.status import AgentStatus, read_status
from tests.system.fleet_stage import (
    FleetStage,
    answered,
    car_settings,
    is_alive,
    stage,
    submit_file,
)
from tests.system.slow_encoder import add_slow_encoder, slow_file
from tests.system.test_fleet_owner import computing_process, start_computing

__all__ = ["stage"]

CAR = "car-0"
REQUESTS = 5_000
UNITS = 12
DAY_S = 86_400
ALONE_S = 4.0
WORDS_MAX = 12
"""So many lines an agent may write while it is alone for some seconds: it tries ever later."""

STEPPED_CLOCK = """
import os, time
ahead_s = int(os.environ.get("AHEAD_S", "0"))
true_ns, true_s = time.time_ns, time.time
time.time_ns = lambda: true_ns() + ahead_s * 1_000_000_000
time.time = lambda: true_s() + ahead_s
"""
"""Python reads it at its start: a process whose wall clock is ahead of all others."""


def status(stage: FleetStage, car: str = CAR) -> AgentStatus:
    """What an agent says of itself, also when nobody else hears it."""
    found = read_status(stage.fleet.car_folder(car))
    assert found is not None
    return found


def words(stage: FleetStage, car: str) -> list[str]:
    """All lines of an agent's log."""
    return (stage.fleet.car_folder(car) / "agent.log").read_text(encoding="utf-8").splitlines()


def told(stage: FleetStage, car: str, event: str) -> bool:
    """Whether an agent has logged this."""
    return any(f"event={event}" in line for line in words(stage, car))


def stop_agent(stage: FleetStage, car: str = CAR, patience_s: float = 30.0) -> int:
    """Ask an agent to end, as a service manager does for an update; its exit code."""
    process = stage.fleet.cars[car].process
    process.send_signal(signal.SIGTERM)
    return process.wait(patience_s)


def test_a_car_without_a_control_plane_waits_for_it(stage: FleetStage) -> None:
    stage.start(cars=1)
    process_id = stage.fleet.cars[CAR].process.pid
    assert stage.fleet.plane is not None
    stage.fleet.plane.kill()
    stage.until(lambda: not status(stage).is_connected, "the agent knows that it is alone")
    before = len(words(stage, CAR))
    time.sleep(ALONE_S)
    assert len(words(stage, CAR)) - before <= WORDS_MAX
    assert is_alive(process_id)

    # One that starts while nobody is there does the same.
    stage.fleet.cars[CAR].kill()
    stage.fleet.start_car(CAR)
    started_id = stage.fleet.cars[CAR].process.pid
    stage.until(lambda: status(stage).process_id == started_id, "the agent runs alone")
    time.sleep(ALONE_S)
    assert is_alive(started_id)
    stage.fleet.start_plane()
    stage.until(lambda: stage.states() == ["idle"], "the car is back")
    assert stage.fleet.cars[CAR].process.pid == started_id
    client = stage.client()
    assert stage.finish(client, stage.submit(client, REQUESTS).id).status == "completed"


def test_what_was_done_alone_outlives_a_power_cut(stage: FleetStage, tmp_path: Path) -> None:
    start_computing(stage, tmp_path, cars=1)
    client = stage.client()
    # Outputs of so few texts ride in their receipts, which wait in the car's record.
    batch = submit_file(client, slow_file(requests=UNITS, texts=15))
    runtime_id = computing_process(stage, CAR)
    assert stage.fleet.plane is not None
    stage.fleet.plane.kill()
    stage.until(lambda: status(stage).receipts_waiting > 0, "work was done that nobody heard of")
    done = status(stage).figures.finished
    stage.fleet.cars[CAR].kill()
    stage.until(lambda: not is_alive(runtime_id), "the runtime ended with its agent")

    stage.fleet.start_plane()
    stage.fleet.start_car(CAR)
    batch = stage.finish(client, batch.id)
    assert batch.status == "completed"
    names = answered(client, batch)
    assert sorted(names) == sorted(f"request-{number}" for number in range(UNITS))
    assert set(stage.lost()) <= {"agent_restarted", "lease_unknown"}
    # What was handed in late counts, and was not computed again.
    assert stop_agent(stage) == Exit.STOPPED
    assert 0 < done <= UNITS - status(stage).figures.finished


def test_two_agents_with_one_identity_are_both_told(stage: FleetStage) -> None:
    stage.start(cars=1)
    shutil.copytree(
        stage.fleet.car_folder(CAR),
        stage.fleet.car_folder("twin"),
        ignore=shutil.ignore_patterns("agent.lock", "record", "agent.log", "status.json"),
    )
    stage.fleet.start_car("twin")
    elsewhere = "identity_used_elsewhere"
    stage.until(lambda: told(stage, CAR, elsewhere), "the first one is told")
    stage.until(lambda: told(stage, "twin", elsewhere), "the second one is told")
    assert all(is_alive(car.process.pid) for car in stage.fleet.cars.values())
    assert len(stage.states()) == 1

    # Whichever of them has the epoch works, and nothing is answered twice.
    client = stage.client()
    batch = stage.finish(client, stage.submit(client, REQUESTS).id)
    names = answered(client, batch)
    assert len(names) == len(set(names)) == REQUESTS
    assert stop_agent(stage, "twin") == Exit.STOPPED


@pytest.mark.parametrize("finish_ms", [0, 60_000], ids=["stops", "finishes"])
def test_an_update_while_the_car_computes(
    stage: FleetStage, tmp_path: Path, finish_ms: int
) -> None:
    stage.fleet.start_plane()
    add_slow_encoder(stage, tmp_path / "slow")
    policy = {"yield": {"settle_ms": 0, "finish_ms": finish_ms}}
    stage.add_car(CAR, {**car_settings(slots=1, runtime="onnx"), "policy": policy})
    stage.until(lambda: stage.states() == ["idle"], "the car is idle")
    client = stage.client()
    batch = submit_file(client, slow_file(requests=4, texts=30))
    runtime_id = computing_process(stage, CAR)
    assert stop_agent(stage, patience_s=90.0) == Exit.STOPPED
    assert not is_alive(runtime_id)
    lost = stage.lost()
    assert set(lost) == (set() if finish_ms else {"agent_stopped"})
    assert not told(stage, CAR, "left_in_haste")

    stage.fleet.start_car(CAR)
    batch = stage.finish(client, batch.id)
    assert batch.status == "completed"
    assert sorted(answered(client, batch)) == [f"request-{number}" for number in range(4)]
    assert stage.lost() == lost


def test_a_clock_that_jumps_over_restarts(
    stage: FleetStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.start(cars=1)
    client = stage.client()
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(STEPPED_CLOCK, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "early"), prepend=":")
    for ahead_s in (2 * DAY_S, 0, -2 * DAY_S, 0):
        assert stop_agent(stage) == Exit.STOPPED
        monkeypatch.setenv("AHEAD_S", str(ahead_s))
        stage.fleet.start_car(CAR)
        process_id = stage.fleet.cars[CAR].process.pid
        stage.until(lambda: stage.states() == ["idle"], f"the car is there with {ahead_s} s")
        batch = stage.finish(client, stage.submit(client, REQUESTS).id)
        assert batch.status == "completed"
        assert len(answered(client, batch)) == REQUESTS
        assert is_alive(process_id)
        # The agent's clock never runs backwards, so it stays ahead when the wall clock is right.
        assert status(stage).at_ms > (time.time() + DAY_S) * 1_000
    assert stage.lost() == {}
