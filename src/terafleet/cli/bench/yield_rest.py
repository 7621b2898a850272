"""Measures what an agent costs a car that refuses: processor, memory, and the way to the bus."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from terafleet.cli.bench.yield_car import CAR, DRIVER_IN, YieldsFailed
from terafleet.cli.bench.yield_processes import cpu_ns_of, descendants, look
from terafleet.cli.bench.yield_relay import CountingRelay
from terafleet.cli.local_fleet import LocalFleet
from terafleet.engine.clock import elapsed_ns

SETTLED_S: Final = 5.0
"""The start is no rest: hello, first heartbeat, and code that runs for the first time."""

READY_S: Final = 30.0
LOOK_S: Final = 0.5
BYTES_PER_MB: Final = 1_000_000
BITS_PER_BYTE: Final = 8
SETTINGS: Final[dict[str, Any]] = {"runtimes": ["onnx"], "vehicle": {"file": "timetable.json"}}
"""An agent as it comes: a sample a second, no runtime up."""


def measure_rest(rest_s: float) -> dict[str, Any]:
    """An agent at rest, with somebody in its car, connected to a real bus, for so long.

    Raises YieldsFailed.
    """
    with tempfile.TemporaryDirectory(prefix="terafleet-bench-") as folder, CountingRelay() as relay:
        plane = {"bus_advertise_urls": [relay.url]}
        with LocalFleet(Path(folder), plane) as fleet:
            relay.target_port = fleet.bus_port
            fleet.start_plane()
            fleet.enrol(CAR, SETTINGS, DRIVER_IN)
            agent_id = fleet.start_car(CAR).process.pid
            _until(lambda: _is_refusing(fleet), "the agent has not joined")
            time.sleep(SETTLED_S)
            return _at_rest(agent_id, relay, rest_s)


def _at_rest(agent_id: int, relay: CountingRelay, rest_s: float) -> dict[str, Any]:
    """The processes of the agent and its children, and its connection, from now on."""
    connections = relay.connections
    carried, used_ns, began_ns = relay.traffic(), _cpu_ns(agent_id), elapsed_ns()
    resident_bytes = 0
    end_s = time.monotonic() + rest_s
    while time.monotonic() < end_s:
        resident_bytes = max(resident_bytes, _resident_bytes(agent_id))
        time.sleep(min(LOOK_S, rest_s))
    lasted_ns = elapsed_ns() - began_ns
    cpu_ns, carried_then = _cpu_ns(agent_id) - used_ns, relay.traffic()
    if relay.connections != connections:
        raise YieldsFailed("the agent's connection broke meanwhile")
    lasted_s = lasted_ns / 1e9
    wire_bytes = carried_then.wire_bytes - carried.wire_bytes
    payload_bytes = carried_then.payload_bytes - carried.payload_bytes
    return {
        "rest_s": lasted_s,
        "idle_cpu_percent": 100 * cpu_ns / lasted_ns,
        "idle_rss_mb": resident_bytes / BYTES_PER_MB,
        "idle_kbit_s": wire_bytes * BITS_PER_BYTE / 1_000 / lasted_s,
        "idle_payload_kbit_s": payload_bytes * BITS_PER_BYTE / 1_000 / lasted_s,
    }


def _family(agent_id: int) -> tuple[int, ...]:
    return (agent_id, *descendants(agent_id))


def _cpu_ns(agent_id: int) -> int:
    return sum(map(cpu_ns_of, _family(agent_id)))


def _resident_bytes(agent_id: int) -> int:
    return sum(one.resident_bytes for one in map(look, _family(agent_id)) if one is not None)


def _is_refusing(fleet: LocalFleet) -> bool:
    with fleet.admin() as admin:
        return [one.state for one in admin.vehicles().vehicles] == ["refusing"]


def _until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline_s = time.monotonic() + READY_S
    while not holds():
        if time.monotonic() > deadline_s:
            raise YieldsFailed(otherwise)
        time.sleep(LOOK_S)
