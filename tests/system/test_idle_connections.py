"""Thousands of connections that ask nothing, or half of something: those that ask are answered."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from terafleet.protocol.manifest import Manifest
from tests.system.fleet_stage import FleetStage

CHAT = "/v1/chat/completions"
MODEL = "counting"
TOKENS = 50
RIGHT = "".join(f"{number} " for number in range(TOKENS))
CAR: dict[str, Any] = {
    "slots": 2,
    "memory_mb": 512,
    "runtimes": ["noop"],
    "session_token_ms": 5,
    "vehicle": {"file": "timetable.json", "sample_ms": 50},
    "policy": {"yield": {"settle_ms": 0}},
}

CONNECTIONS = 3_000
FILES_SPARE = 500
"""What the test needs beside its connections."""

ANSWER_S = 10.0
BYTES_EACH_MAX = 16 * 1024
"""Three times what was measured, 5 KiB."""

HALF_A_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\nauthorization: Bear"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[FleetStage]:
    with FleetStage(tmp_path) as stage:
        stage.fleet.start_plane()
        with stage.fleet.admin() as admin:
            admin.create_model(Manifest(MODEL, "noop", (CHAT,), 1, (), {}))
        stage.add_car("car-0", CAR)
        stage.until(lambda: stage.states() == ["idle"], "the car is idle")
        yield stage


@pytest.fixture
def connections() -> Iterator[int]:
    """How many connections this process may have at once, after it has taken what it may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + FILES_SPARE
    may_have = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < may_have:
        resource.setrlimit(resource.RLIMIT_NOFILE, (may_have, hard))
    yield may_have - FILES_SPARE
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory_bytes(stage: FleetStage) -> int:
    """What the control plane's process holds (the second field of statm, proc_pid_statm(5))."""
    assert stage.fleet.plane is not None
    statm = Path(f"/proc/{stage.fleet.plane.process.pid}/statm").read_text(encoding="utf-8")
    return int(statm.split()[1]) * resource.getpagesize()


def check_answers(stage: FleetStage, client: OpenAI) -> None:
    """Live requests and health are answered, on connections that there are and on new ones."""
    for path in ("/", "/readyz"):
        assert httpx.get(f"{stage.fleet.url}{path}", timeout=ANSWER_S).status_code == 200
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "count"}],
        max_tokens=TOKENS,
        stream=True,
        timeout=ANSWER_S,
    )
    text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert text == RIGHT


def test_idle_and_half_open_connections_keep_nobody_waiting(
    live: FleetStage, connections: int
) -> None:
    client = live.client(retries=0)
    check_answers(live, client)
    before = memory_bytes(live)
    with ExitStack() as stack:
        for number in range(connections):
            sent = HALF_A_REQUEST if number % 2 else b""
            address = ("127.0.0.1", live.fleet.port)
            connection = stack.enter_context(socket.create_connection(address, timeout=ANSWER_S))
            connection.sendall(sent)
            if number % 1_000 == 999:
                check_answers(live, client)
        check_answers(live, client)
        each = (memory_bytes(live) - before) / connections
        assert each < BYTES_EACH_MAX, f"{each:.0f} bytes each"
    check_answers(live, client)
