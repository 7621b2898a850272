"""Live streams of real processes whose cars leave: each text is the right one, or ends with a word.

The runtime tells the numbers of its tokens, so that a token that is lost or comes twice is seen.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from terafleet.protocol.manifest import Manifest
from tests.system.fleet_stage import FleetStage

CHAT = "/v1/chat/completions"
MODEL = "counting"
TOKENS = 120
TOKEN_MS = 20
RIGHT = "".join(f"{number} " for number in range(TOKENS))
SLOTS = 4

CAR: dict[str, Any] = {
    "slots": SLOTS,
    "memory_mb": 512,
    "runtimes": ["noop"],
    "session_token_ms": TOKEN_MS,
    "vehicle": {"file": "timetable.json", "sample_ms": 50},
    "policy": {"yield": {"settle_ms": 0}},
}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[FleetStage]:
    with FleetStage(tmp_path) as stage:
        stage.fleet.start_plane()
        with stage.fleet.admin() as admin:
            admin.create_model(Manifest(MODEL, "noop", (CHAT,), 1, (), {}))
        yield stage


def with_cars(stage: FleetStage, cars: int) -> OpenAI:
    """A customer of a fleet of so many cars."""
    for number in range(cars):
        stage.add_car(f"car-{number}", CAR)
    stage.until(lambda: stage.states().count("idle") == cars, "all cars idle")
    return stage.client(retries=0)


def streamed(client: OpenAI, hear: Callable[[int], None] = lambda _: None) -> str:
    """The text of one answer; `hear` is told how many pieces have come."""
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "count"}],
        max_tokens=TOKENS,
        stream=True,
    )
    text = ""
    for pieces, chunk in enumerate(stream, 1):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        hear(pieces)
    return text


def car_at_work(stage: FleetStage) -> str:
    """The car that tells the only session."""
    with stage.fleet.admin() as admin:
        return next(one.name for one in admin.vehicles().vehicles if one.leases)


def once(at: int, deed: Callable[[], None]) -> Callable[[int], None]:
    """Do something when so many pieces have come."""

    def hear(pieces: int) -> None:
        if pieces == at:
            deed()

    return hear


def test_the_owner_comes_back_in_the_middle(live: FleetStage) -> None:
    client = with_cars(live, 2)
    text = streamed(client, once(30, lambda: live.turn(car_at_work(live), is_driver_present=True)))
    assert text == RIGHT
    assert "refusing" in live.states()


def test_a_car_is_killed_in_the_middle(live: FleetStage) -> None:
    client = with_cars(live, 2)
    text = streamed(client, once(30, lambda: live.fleet.cars[car_at_work(live)].kill()))
    assert text == RIGHT


def test_a_frozen_agent_is_left(live: FleetStage) -> None:
    """It holds its connection and its lease, and says nothing."""
    client = with_cars(live, 2)
    frozen: list[str] = []

    def freeze() -> None:
        frozen.append(car_at_work(live))
        os.kill(live.fleet.cars[frozen[0]].process.pid, signal.SIGSTOP)

    try:
        assert streamed(client, once(30, freeze)) == RIGHT
    finally:
        os.kill(live.fleet.cars[frozen[0]].process.pid, signal.SIGCONT)


def test_sessions_have_priority_over_a_batch_and_the_batch_is_done_all_the_same(
    live: FleetStage,
) -> None:
    with live.fleet.admin() as admin:
        admin.create_model(Manifest("noop", "noop", ("/v1/embeddings",), 1, (), {}))
    client = with_cars(live, 2)
    patient = live.client()
    batch = live.submit(patient, 20_000)
    live.until_done(patient, batch.id, 500)
    texts: list[str] = []
    readers = [
        threading.Thread(target=lambda: texts.append(streamed(client))) for _ in range(2 * SLOTS)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert texts == [RIGHT] * (2 * SLOTS), "all slots of the fleet tell sessions"
    ended = live.finish(patient, batch.id)
    assert ended.request_counts.completed == 20_000


def test_who_hangs_up_frees_the_slot_at_once(live: FleetStage) -> None:
    client = with_cars(live, 1)
    for _ in range(3 * SLOTS):
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "count"}],
            max_tokens=100_000,
            stream=True,
        )
        next(iter(stream))
        stream.close()
    live.until(lambda: live.states() == ["idle"], "no session left behind")


def test_a_full_fleet_says_so_and_how_long(live: FleetStage) -> None:
    client = with_cars(live, 1)
    streams = [
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "count"}],
            max_tokens=100_000,
            stream=True,
        )
        for _ in range(SLOTS)
    ]
    for stream in streams:
        next(iter(stream))
    began_s = time.monotonic()
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "count"}], max_tokens=100_000
        )
    assert time.monotonic() - began_s < 5, "nobody is kept waiting for nothing"
    assert int(refused.value.response.headers["retry-after"]) >= 1
    for stream in streams:
        stream.close()


def test_without_a_car_that_permits_the_answer_is_immediate(live: FleetStage) -> None:
    client = with_cars(live, 1)
    live.turn("car-0", is_driver_present=True)
    live.until(lambda: live.states() == ["refusing"], "the owner is in the car")
    with pytest.raises(openai.APIStatusError) as refused:
        streamed(client)
    assert refused.value.status_code == 503


def test_the_control_plane_dies_and_nobody_hangs(live: FleetStage) -> None:
    client = with_cars(live, 1)

    def kill() -> None:
        assert live.fleet.plane is not None
        live.fleet.plane.kill()

    # The client's own library lets this one through as it is.
    with pytest.raises((openai.APIError, httpx.RemoteProtocolError)):
        streamed(client, once(30, kill))
    live.fleet.start_plane()
    live.until(lambda: live.states() == ["idle"], "the car has let go of the session")
    assert streamed(client) == RIGHT


def test_a_stop_tells_open_streams_and_does_not_wait_for_them(live: FleetStage) -> None:
    client = with_cars(live, 1)
    plane = live.fleet.plane
    assert plane is not None
    with pytest.raises(openai.APIError, match="stopping"):
        streamed(client, once(30, plane.process.terminate))
    assert plane.process.wait(timeout=20) == 0
