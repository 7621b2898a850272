"""Starts runtimes behind their walls, stops and ends them, and prints what was seen as JSON.

The command line is `python -m terafleet.agent.adapters.sandbox.checkup WISH`. With a second word
it starts one runtime, tells its process and waits to be killed: then that must end as well.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from terafleet.agent.adapters.runtime.child import ChildRuntime, ChildSettings
from terafleet.agent.adapters.sandbox.cgroups import sweep_here
from terafleet.agent.checkup import Checkup, CheckupWish, RuntimeChecked
from terafleet.agent.ports import RuntimeUnavailable

_MS_PER_S: Final = 1000
_STOP_SECONDS_MAX: Final = 2.0
_LOOK_SECONDS: Final = 0.0005
_STOPPED: Final = frozenset("Tt")


def main() -> None:
    """Try all that is wished for."""
    wish = msgspec.json.decode(sys.argv[1], type=CheckupWish)
    if sys.argv[2:]:
        asyncio.run(_be_killed(wish, sys.argv[2]))
    checked = asyncio.run(_check_all(wish))
    sys.stdout.buffer.write(msgspec.json.encode(checked))


async def _check_all(wish: CheckupWish) -> Checkup:
    return Checkup(tuple([await _check(kind, wish) for kind in wish.kinds]))


async def _check(kind: str, wish: CheckupWish) -> RuntimeChecked:
    """One runtime, from its start to its end."""
    runtime = _runtime(kind, wish)
    began = time.monotonic()
    try:
        report = await runtime.start(lambda _reason: None)
    except RuntimeUnavailable as fault:
        not_wrapped, no_own_user = runtime.wrapping_faults
        return RuntimeChecked(
            kind, fault=str(fault), not_wrapped=not_wrapped, no_own_user=no_own_user
        )
    start_ms = _ms_since(began)
    process_id = runtime.process_id
    began = time.monotonic()
    runtime.suspend()
    is_stopped = _happens(lambda: _states(process_id) <= _STOPPED)
    stop_ms = _ms_since(began)
    began = time.monotonic()
    await runtime.kill()
    kill_ms = _ms_since(began)
    dies = report.dies_with_agent and await asyncio.to_thread(_dies_with_agent, kind, wish)
    not_wrapped, no_own_user = runtime.wrapping_faults
    return RuntimeChecked(
        kind,
        fault="" if is_stopped and not _states(process_id) else "it could not be stopped",
        report=msgspec.structs.replace(report, dies_with_agent=dies),
        mechanisms=runtime.mechanisms,
        not_wrapped=not_wrapped,
        no_own_user=no_own_user,
        start_ms=start_ms,
        stop_ms=stop_ms,
        kill_ms=kill_ms,
    )


def _runtime(kind: str, wish: CheckupWish) -> ChildRuntime:
    settings = ChildSettings(Path(wish.models_folder), memory_bytes=wish.memory_bytes)
    return ChildRuntime(kind, settings)


def _dies_with_agent(kind: str, wish: CheckupWish) -> bool:
    """Whether a runtime ends when its agent is killed."""
    words = msgspec.json.encode(wish).decode()
    command = [sys.executable, "-P", "-m", __spec__.name, words, kind]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        line = agent.stdout.readline()
        process_id = int(line) if line.strip() else None
        is_there = process_id is not None and bool(_states(process_id))
        agent.kill()
    has_died = process_id is not None and _happens(lambda: not _states(process_id))
    sweep_here()
    return is_there and has_died


async def _be_killed(wish: CheckupWish, kind: str) -> None:
    runtime = _runtime(kind, wish)
    await runtime.start(lambda _reason: None)
    print(runtime.process_id, flush=True)
    await asyncio.Event().wait()


def _happens(is_so: Callable[[], bool]) -> bool:
    """Whether something becomes so in the time that an owner is promised."""
    deadline = time.monotonic() + _STOP_SECONDS_MAX
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(_LOOK_SECONDS)
    return False


def _states(process_id: int) -> set[str]:
    """The states of a process's threads; none when it is gone or dead."""
    letters = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{process_id}/task"):
            stat = Path(f"/proc/{process_id}/task/{name}/stat").read_text("utf-8", "replace")
            letters.add(stat.rpartition(")")[2].split()[0])
    return letters - set("ZX")


def _ms_since(began_s: float) -> int:
    return round((time.monotonic() - began_s) * _MS_PER_S)


if __name__ == "__main__":
    main()
