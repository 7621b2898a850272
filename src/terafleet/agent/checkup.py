"""Asks a program of its own which walls hold around runtimes on this computer, tried for real.

That program is an agent in small: it starts runtimes, stops them, and is killed itself.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from terafleet.core.isolation import IsolationLevel, SandboxReport, isolation_level

_PROGRAM: Final = "terafleet.agent.adapters.sandbox.checkup"
_SECONDS_MAX: Final = 180.0


class RuntimeChecked(msgspec.Struct, frozen=True):
    """One kind of runtime as it was seen, or in `fault` why it did not start.

    `mechanisms` are what of the kernel makes the walls hold. `not_wrapped` says why no program
    could be wrapped, `no_own_user` why it has no user of its own; both are empty where it has.
    `start_ms` is how long it took to start, `stop_ms` from the signal that suspends it to the
    moment when all its threads had stopped, `kill_ms` to the end of it.
    """

    kind: str
    fault: str = ""
    report: SandboxReport | None = None
    mechanisms: tuple[str, ...] = ()
    not_wrapped: str = ""
    no_own_user: str = ""
    start_ms: int = 0
    stop_ms: int = 0
    kill_ms: int = 0

    @property
    def level(self) -> IsolationLevel:
        """What the car may say of this runtime."""
        return isolation_level(self.report)


class Checkup(msgspec.Struct, frozen=True):
    """All the runtimes that were asked for, in that order."""

    runtimes: tuple[RuntimeChecked, ...]

    @property
    def level(self) -> IsolationLevel:
        """What the car may say of itself: it is as good as the weakest of its runtimes."""
        levels = list(IsolationLevel)
        found = [levels.index(one.level) for one in self.runtimes]
        return levels[min(found, default=0)]


class CheckupFailed(msgspec.Struct, frozen=True):
    """The program itself did not get to its end, and why."""

    detail: str


class CheckupWish(msgspec.Struct, frozen=True):
    """What to try: runtimes of these kinds, which may read one folder."""

    kinds: tuple[str, ...]
    models_folder: str
    memory_bytes: int


def check_walls(
    kinds: tuple[str, ...], models_folder: Path, memory_bytes: int
) -> "Checkup | CheckupFailed":
    """Try it; blocks for some seconds, longer on a computer that has much else to do."""
    wish = CheckupWish(kinds, str(models_folder.absolute()), memory_bytes)
    command = [sys.executable, "-P", "-m", _PROGRAM, msgspec.json.encode(wish).decode()]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS_MAX,
            check=False,
        )
        return msgspec.json.decode(done.stdout, type=Checkup)
    except subprocess.TimeoutExpired:
        return CheckupFailed("it did not end in time")
    except msgspec.MsgspecError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return CheckupFailed(said[-1] if said else f"exit code {done.returncode}")
