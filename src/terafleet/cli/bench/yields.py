"""Measures how fast an owner has the car back from a busy runtime, and what an agent at rest costs.

What is measured from when to when stands in docs/mechanisms/yield.md.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from terafleet.cli.bench.yield_car import BusyCar, Taken, YieldsFailed
from terafleet.engine.clock import NS_PER_MS

OWN, WRAPPED, BOTH = "own", "wrapped", "both"
WRAPPER: Final = "bwrap"
TELL_EVERY: Final = 20
BYTES_PER_MB: Final = 1_000_000


def measure_yields(count: int, kills: int, seed: int, walls: str) -> dict[str, Any]:
    """So many yields to a driver, then so many ends by the agent's own end, of a busy runtime.

    `walls` are those around the runtime: `wrapped` in bubblewrap, where the computer has it, its
    `own`, or `both` one after the other, and then the names of the latter begin with `unwrapped_`.
    Raises YieldsFailed.
    """
    figures: dict[str, Any] = {}
    if walls != OWN and shutil.which(WRAPPER) is not None:
        figures |= _measured(count, kills, seed, may_wrap=True)
    if walls != WRAPPED or not figures:
        unwrapped = _measured(count, kills, seed, may_wrap=False)
        prefix = "unwrapped_" if figures else ""
        figures |= {f"{prefix}{name}": value for name, value in unwrapped.items()}
    return figures


def _measured(count: int, kills: int, seed: int, *, may_wrap: bool) -> dict[str, Any]:
    with BusyCar(seed, may_wrap=may_wrap) as car:
        yields = list(_told(car, count))
        read_ns, level = car.drivers_read_ns(), car.isolation_level
        killed = [car.kill_agent() for _ in range(kills)]
        return {
            **figures_of(yields, read_ns),
            **_figures_of_kills(killed),
            "is_wrapped": may_wrap,
            "attempts_lost": car.attempts_lost(),
            "isolation_level": level,
            "watched_undelayed": car.is_undelayed,
        }


def _told(car: BusyCar, count: int) -> Iterator[Taken]:
    """Each yield; how far it is goes to standard error, because it takes minutes."""
    for number in range(1, count + 1):
        yield car.yield_to_driver()
        if number % TELL_EVERY == 0:
            sys.stderr.write(f"{number} of {count} yields\n")


def figures_of(yields: Sequence[Taken], read_ns: Sequence[int]) -> dict[str, Any]:
    """Times in ms from the moment at which the agent has read that a driver is there.

    Raises YieldsFailed if it read of fewer or more drivers than came.
    """
    if len(read_ns) != len(yields):
        raise YieldsFailed(f"{len(yields)} drivers came, and the agent read of {len(read_ns)}")
    pairs = list(zip(yields, read_ns, strict=True))
    off_cpu_ms = _in_order(one.seen.off_cpu_ns - at_ns for one, at_ns in pairs)
    stopped_ms = _in_order(one.seen.stopped_ns - at_ns for one, at_ns in pairs)
    back_ms = _in_order(one.seen.memory_back_ns - at_ns for one, at_ns in pairs)
    left_ms = _in_order(one.gone_ns - at_ns for one, at_ns in pairs)
    way_ms = _in_order(at_ns - one.began_ns for one, at_ns in pairs)
    return {
        "yields": len(yields),
        "off_cpu_ms_p50": _middle(off_cpu_ms),
        "off_cpu_ms_p99": _tail(off_cpu_ms),
        "off_cpu_ms_max": off_cpu_ms[-1],
        "stopped_ms_p50": _middle(stopped_ms),
        "stopped_ms_p99": _tail(stopped_ms),
        "stopped_ms_max": stopped_ms[-1],
        "memory_back_ms_p50": _middle(back_ms),
        "memory_back_ms_p99": _tail(back_ms),
        "memory_back_ms_max": back_ms[-1],
        "nothing_left_ms_max": left_ms[-1],
        "way_ms_p50": _middle(way_ms),
        "way_ms_max": way_ms[-1],
        "resolution_ms_p99": _tail(_in_order(one.seen.resolution_ns for one in yields)),
        "runtime_mb_p50": _middle(sorted(one.held_bytes / BYTES_PER_MB for one in yields)),
    }


def _figures_of_kills(killed: Sequence[Taken]) -> dict[str, Any]:
    """Times in ms from the signal that ends the agent without a word."""
    off_cpu_ms = _in_order(one.seen.off_cpu_ns - one.began_ns for one in killed)
    back_ms = _in_order(one.seen.memory_back_ns - one.began_ns for one in killed)
    return {
        "agent_kills": len(killed),
        "agent_killed_off_cpu_ms_max": off_cpu_ms[-1] if killed else None,
        "agent_killed_memory_back_ms_max": back_ms[-1] if killed else None,
    }


def _in_order(times_ns: Iterable[int]) -> list[float]:
    return sorted(time_ns / NS_PER_MS for time_ns in times_ns)


def _middle(in_order: Sequence[float]) -> float:
    return in_order[len(in_order) // 2]


def _tail(in_order: Sequence[float]) -> float:
    """The 99th percentile."""
    return in_order[min(len(in_order) - 1, len(in_order) * 99 // 100)]
