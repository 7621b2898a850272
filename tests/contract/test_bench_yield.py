"""The instruments of `terafleet bench yield`, on processes and connections that are there."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from terafleet.cli.bench.yield_car import Taken, YieldsFailed
from terafleet.cli.bench.yield_processes import (
    descendants,
    is_ending,
    look,
    runs_own_code,
)
from terafleet.cli.bench.yield_relay import HEADER_BYTES, CountingRelay, Traffic
from terafleet.cli.bench.yield_watch import Seen, undelayed, watch
from terafleet.cli.bench.yields import figures_of
from terafleet.engine.clock import NS_PER_MS, elapsed_ns

PATIENCE_S = 10.0
BUSY = "print(1, flush=True)\nwhile True: pass"
BUSY_FOR_A_WHILE = """
import sys, time
end = time.monotonic() + 0.1
print(1, flush=True)
while time.monotonic() < end: pass
sys.stdout.write(str(time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
sys.stdout.flush()
"""
IDLE = "import time\nprint(1, flush=True)\ntime.sleep(60)"
WITH_A_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", {IDLE!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


class Program:
    """A program that says a line when it is at work."""

    def __init__(self, text: str) -> None:
        command = [sys.executable, "-I", "-S", "-c", text]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.first_line = self.output.readline().strip()
        self.process_id = self.process.pid

    def end(self) -> None:
        """End it and take notice."""
        self.process.kill()
        self.process.wait()
        self.output.close()


@pytest.fixture
def start() -> Iterator[Callable[[str], Program]]:
    """Starts programs that end with the test."""
    started: list[Program] = []

    def begin(text: str) -> Program:
        started.append(Program(text))
        return started[-1]

    yield begin
    for one in started:
        one.end()


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that comes within moments."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def test_a_busy_process_is_seen_to_use_and_to_hold(start: Callable[[str], Program]) -> None:
    busy = start(BUSY)
    before = look(busy.process_id)
    assert before is not None
    assert before.resident_bytes > 1_000_000
    until(lambda: (found := look(busy.process_id)) is not None and found.cpu_ns > before.cpu_ns)
    assert runs_own_code(busy.process_id)


def test_an_idle_and_a_stopped_process_run_nothing(start: Callable[[str], Program]) -> None:
    idle, stopped = start(IDLE), start(BUSY)
    os.kill(stopped.process_id, signal.SIGSTOP)
    for one in (idle, stopped):
        until(lambda one=one: not runs_own_code(one.process_id))  # type: ignore[misc]
        assert not is_ending(one.process_id)
    os.kill(stopped.process_id, signal.SIGCONT)
    until(lambda: runs_own_code(stopped.process_id))


def test_a_process_that_nobody_has_waited_for_has_ended(start: Callable[[str], Program]) -> None:
    busy = start(BUSY)
    busy.process.send_signal(signal.SIGKILL)
    until(lambda: (found := look(busy.process_id)) is not None and found.has_ended)
    found = look(busy.process_id)
    assert found is not None
    assert found.resident_bytes == 0
    busy.process.wait()
    assert look(busy.process_id) is None


def test_children_of_children_are_found(start: Callable[[str], Program]) -> None:
    parent = start(WITH_A_CHILD)
    child_id = int(parent.first_line)
    assert descendants(parent.process_id) == (child_id,)
    assert {parent.process_id, child_id} <= set(descendants(os.getpid()))
    parent.end()
    os.kill(child_id, signal.SIGKILL)
    assert descendants(parent.process_id) == ()


def test_a_watch_sees_the_last_use_of_a_processor(start: Callable[[str], Program]) -> None:
    busy = start(BUSY_FOR_A_WHILE)
    began_ns = elapsed_ns()
    seen = watch([busy.process_id], PATIENCE_S)
    ended_ns = elapsed_ns()
    last_known_ns = int(busy.output.read())
    assert began_ns < last_known_ns <= seen.off_cpu_ns <= seen.memory_back_ns <= ended_ns
    assert seen.stopped_ns >= last_known_ns
    assert seen.resolution_ns > 0
    assert seen.is_over


def test_a_watch_waits_for_the_last_of_several(start: Callable[[str], Program]) -> None:
    killed, later = start(BUSY), start(BUSY_FOR_A_WHILE)
    killed.process.send_signal(signal.SIGKILL)
    seen = watch([later.process_id, killed.process_id], PATIENCE_S)
    assert seen.off_cpu_ns >= int(later.output.read())


def test_a_watch_ends_where_a_process_does_not(start: Callable[[str], Program]) -> None:
    busy = start(BUSY)
    os.kill(busy.process_id, signal.SIGSTOP)
    assert not watch([busy.process_id], 0.02).is_over


def test_who_watches_is_like_others_again_afterwards() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with undelayed() as is_allowed:
        assert (os.getpriority(os.PRIO_PROCESS, 0) < before) == is_allowed
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_figures_count_from_the_reading() -> None:
    yields, read_ns = [], []
    for number in range(1, 201):
        began_ns = number * 1_000 * NS_PER_MS
        at_ns = began_ns + 7 * NS_PER_MS
        off_ns = at_ns + number * NS_PER_MS
        seen = Seen(at_ns + NS_PER_MS, off_ns, 300_000, off_ns + NS_PER_MS)
        yields.append(Taken(began_ns, 250_000_000, seen, off_ns + 2 * NS_PER_MS))
        read_ns.append(at_ns)
    figures = figures_of(yields, read_ns)
    assert figures["yields"] == 200
    assert (figures["off_cpu_ms_p50"], figures["off_cpu_ms_p99"]) == (101, 199)
    assert (figures["off_cpu_ms_max"], figures["memory_back_ms_p99"]) == (200, 200)
    assert (figures["way_ms_p50"], figures["stopped_ms_max"]) == (7, 1)
    assert figures["nothing_left_ms_max"] == 202
    assert figures["runtime_mb_p50"] == 250
    with pytest.raises(YieldsFailed, match="200 drivers came"):
        figures_of(yields, read_ns[:-1])


def test_a_relay_carries_and_counts_both_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bus, CountingRelay() as relay:
        relay.target_port = bus.getsockname()[1]
        host, port = relay.url.removeprefix("nats://").split(":")
        with socket.create_connection((host, int(port))) as agent:
            behind, _ = bus.accept()
            with behind:
                until(lambda: relay.connections == 1)
                before = relay.traffic()
                agent.sendall(b"ping" * 100)
                assert behind.recv(400, socket.MSG_WAITALL) == b"ping" * 100
                behind.sendall(b"pong" * 50)
                assert agent.recv(200, socket.MSG_WAITALL) == b"pong" * 50
                until(lambda: relay.traffic().payload_bytes == before.payload_bytes + 600)
                assert relay.traffic().segments >= before.segments + 2


def test_headers_are_part_of_what_a_link_carries() -> None:
    assert Traffic(payload_bytes=100, segments=3).wire_bytes == 100 + 3 * HEADER_BYTES
