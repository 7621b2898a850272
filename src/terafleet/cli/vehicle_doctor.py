"""The command `vehicle doctor`: what holds in this car, what does not, and what to do about it."""

import shutil
import tempfile
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from terafleet.cli.failure import CommandFailed, extra_needed
from terafleet.cli.options import add_command
from terafleet.cli.output import print_facts, print_json, size
from terafleet.core.isolation import WALLS_OF_LEVEL, IsolationLevel

if TYPE_CHECKING:
    from terafleet.agent.checkup import Checkup, RuntimeChecked
    from terafleet.agent.settings import AgentSettings

_MODELS_FOLDER = "models/names"
_BYTES_PER_MB = 1_000_000
_DISK_BYTES_FREE_MIN = 1_000 * _BYTES_PER_MB
_CLOCK_S_MAX = 60
# A clock that was never set is in the years before this program (2025-01-01).
_CLOCK_S_FIRST = 1_735_689_600
_GATEWAY_SECONDS_MAX = 10.0
_ADAPTERS_WITH_FILE = ("scripted", "replay", "sumo")
_KINDS_TRIED = ("onnx", "llama")
_UNCLAIMED = "has_idle_priority"

WALLS: dict[str, tuple[str, str]] = {
    "has_no_network": (
        "the network is out of reach",
        "The kernel must offer network namespaces (CONFIG_NET_NS) or seccomp filters.",
    ),
    "dies_with_agent": (
        "it ends with the agent",
        "The agent was killed and its runtime lived on; tell us of this computer.",
    ),
    "cannot_gain_privileges": (
        "no privileges, and none to be had",
        "The kernel must offer no_new_privs; run the agent without file capabilities.",
    ),
    "has_limited_memory": (
        "memory is bounded",
        "The kernel must offer RLIMIT_DATA and seccomp filters.",
    ),
    "filesystem_read_only": (
        "no file can be written",
        "The kernel must offer Landlock (5.13 or later, landlock among its lsm=).",
    ),
    "sees_no_other_process": ("other processes are out of sight", ""),
    "sees_only_its_files": ("other files are out of sight", ""),
    "leaves_no_memory_image": (
        "a crash leaves no image of memory",
        "The kernel must offer PR_SET_DUMPABLE.",
    ),
    "has_own_identity": (
        "it runs as a user of its own",
        "Run the agent as root: it lends the runtime a user that nothing else has.",
    ),
    "has_limited_threads": (
        "threads are bounded",
        "Let the agent make control groups: with systemd, Delegate=yes and DelegateSubgroup=agent.",
    ),
    "has_idle_priority": (
        "it computes only when nobody else wants to",
        "The kernel must offer SCHED_IDLE.",
    ),
}
"""What each wall is to a person, and what to do where it is missing."""


class Doctor(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `vehicle doctor`."""

    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="The folder of this car's agent.")
    ] = None
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False


class Wall(msgspec.Struct, frozen=True):
    """One wall, as it was tried around every runtime; `advice` is empty where it holds."""

    name: str
    holds: bool
    advice: str = ""


class Check(msgspec.Struct, frozen=True):
    """One thing that an owner wants to know to be in order."""

    name: str
    is_good: bool
    detail: str
    advice: str = ""


class Findings(msgspec.Struct, frozen=True):
    """All that was found; `can_compute` says whether this car can do so safely."""

    can_compute: bool
    isolation_level: IsolationLevel
    walls: tuple[Wall, ...]
    runtimes: tuple["RuntimeChecked", ...]
    checks: tuple[Check, ...]


def register_doctor(vehicles: typer.Typer) -> None:
    """Add the command to those below `vehicle`."""
    add_command(vehicles, "doctor", Doctor, doctor, "terafleet vehicle doctor --data car")


def doctor(options: Doctor) -> None:
    """Show which walls hold around runtimes in this car, and what else an owner should know.

    Every wall is tried for real. Exit code 1 means that this car can't compute safely.
    """
    found = findings(options.data)
    if options.is_json:
        print_json(found)
    else:
        print_facts(facts_of(found))
    if not found.can_compute:
        raise typer.Exit(1)


def findings(data: Path | None) -> Findings:
    """Try all there is to try. Raises CommandFailed where not even that can be done."""
    settings = _settings(data)
    checks = [clock_check(time.time()), disk_check(settings.data_folder)]
    if data is not None:
        checks += [vehicle_check(settings), *gateway_checks(settings)]
    checkup = _checkup(settings, data is not None)
    checks += [_runtime_check(one) for one in checkup.runtimes]
    does_start = all(not one.fault for one in checkup.runtimes)
    return Findings(
        can_compute=does_start and checkup.level is not IsolationLevel.NONE,
        isolation_level=checkup.level,
        walls=walls_of(checkup),
        runtimes=tuple(checkup.runtimes),
        checks=tuple(checks),
    )


def walls_of(checkup: "Checkup") -> tuple[Wall, ...]:
    """Every wall that a level asks for, and priority; one holds if it does around every runtime."""
    names = [name for walls in WALLS_OF_LEVEL.values() for name in walls]
    return tuple(_wall(name, checkup) for name in (*names, _UNCLAIMED))


def facts_of(found: Findings) -> list[tuple[str, str]]:
    """The findings for a person, one line each, those that ask for something with what to do."""
    facts = [
        ("this car", "can compute safely" if found.can_compute else "CAN NOT COMPUTE SAFELY"),
        ("isolation", f"{found.isolation_level.value}, of {', '.join(IsolationLevel)}"),
    ]
    for wall in found.walls:
        facts.append(("wall" if wall.holds else "WALL MISSING", WALLS[wall.name][0]))
        if wall.advice:
            facts.append(("", f"  {wall.advice}"))
    for check in found.checks:
        facts.append((check.name, check.detail if check.is_good else f"NO: {check.detail}"))
        if check.advice:
            facts.append(("", f"  {check.advice}"))
    return facts


def clock_check(now_s: float) -> Check:
    """Whether the clock was ever set; leases and credentials need it."""
    is_good = now_s >= _CLOCK_S_FIRST
    detail = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now_s))
    return Check("clock", is_good, detail, "" if is_good else "Set the clock, best by NTP.")


def disk_check(folder: Path) -> Check:
    """Whether models find room."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free_bytes = shutil.disk_usage(there).free
    is_good = free_bytes >= _DISK_BYTES_FREE_MIN
    advice = "" if is_good else f"Models need some room: free {size(_DISK_BYTES_FREE_MIN)} or more."
    return Check("disk", is_good, f"{size(free_bytes)} free", advice)


def vehicle_check(settings: "AgentSettings") -> Check:
    """Whether the file of the vehicle adapter can be read, for those that have one."""
    adapter, path = settings.vehicle.chosen, settings.vehicle.path(settings.data_folder)
    if adapter not in _ADAPTERS_WITH_FILE:
        return Check("readings", is_good=True, detail=f"from {adapter}")
    try:
        with path.open("rb"):
            return Check("readings", is_good=True, detail=f"from {path} ({adapter})")
    except OSError as error:
        advice = "Without readings a car refuses everything; put the file there."
        detail = f"{path}: {error.strerror}"
        return Check("readings", is_good=False, detail=detail, advice=advice)


def gateway_checks(settings: "AgentSettings") -> list[Check]:
    """Whether the car is enrolled, its gateway answers, and both agree on the time."""
    with extra_needed("agent"):
        from terafleet.agent.identity import IdentityRefused, load_identity
    identity = load_identity(settings.data_folder)
    if isinstance(identity, IdentityRefused):
        return [Check("fleet", is_good=False, detail=identity.detail, advice=identity.advice)]
    url = settings.gateway_url or identity.enrolment.gateway_url
    return _asked_gateway(url)


def _asked_gateway(url: str) -> list[Check]:
    import httpx

    try:
        reply = httpx.get(url, timeout=_GATEWAY_SECONDS_MAX)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        advice = "The car goes on with what it has; look after its link and this address."
        return [Check("fleet", is_good=False, detail=f"{url}: {error}", advice=advice)]
    checks = [Check("fleet", is_good=True, detail=f"{url} answers")]
    try:
        ahead_s = time.time() - parsedate_to_datetime(reply.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return checks
    is_good = abs(ahead_s) <= _CLOCK_S_MAX
    detail = f"{round(abs(ahead_s))} s {'ahead of' if ahead_s > 0 else 'behind'} the gateway's"
    advice = "" if is_good else "Credentials are refused by a wrong clock; set it, best by NTP."
    return [*checks, Check("time", is_good, detail, advice)]


def _settings(data: Path | None) -> "AgentSettings":
    """The agent's settings; without a folder those that an agent begins with."""
    with extra_needed("agent"):
        from terafleet.agent.settings import AgentSettings, SettingsRefused, load_settings
    if data is None:
        return AgentSettings(data_folder=Path.cwd(), runtimes=_KINDS_TRIED)
    settings = load_settings(data)
    if isinstance(settings, SettingsRefused):
        faults = "; ".join(settings.faults)
        raise CommandFailed("settings_refused", f"The agent's settings are wrong: {faults}.")
    return settings


def _checkup(settings: "AgentSettings", is_there: bool) -> "Checkup":
    with extra_needed("agent"):
        from terafleet.agent.checkup import CheckupFailed, check_walls
    # A runtime for tests runs in the agent: there is nothing around it to try.
    kinds = tuple(kind for kind in settings.runtimes if kind != "noop")
    if not is_there:
        kinds = tuple(kind for kind in kinds if _is_installed(kind))
    memory_bytes = settings.memory_mb * _BYTES_PER_MB
    with tempfile.TemporaryDirectory() as empty:
        models = settings.data_folder / _MODELS_FOLDER
        folder = models if is_there and models.is_dir() else Path(empty)
        found = check_walls(kinds, folder, memory_bytes)
    if isinstance(found, CheckupFailed):
        raise CommandFailed("checkup_failed", f"The walls could not be tried: {found.detail}.")
    return found


def _is_installed(kind: str) -> bool:
    from importlib.util import find_spec

    return find_spec({"onnx": "onnxruntime", "llama": "xllamacpp"}[kind]) is not None


def _runtime_check(one: "RuntimeChecked") -> Check:
    name = f"runtime {one.kind}"
    if one.fault:
        advice = "Install it with: pip install 'terafleet[agent]'" if one.report is None else ""
        return Check(name, is_good=False, detail=one.fault, advice=advice)
    times = f"starts in {one.start_ms} ms, stops in {one.stop_ms} ms, ends in {one.kill_ms} ms"
    return Check(name, is_good=True, detail=f"{one.level.value}; {times}")


def _wall(name: str, checkup: "Checkup") -> Wall:
    lacking = [one for one in checkup.runtimes if one.report and not getattr(one.report, name)]
    tried = [one for one in checkup.runtimes if one.report]
    if tried and not lacking:
        return Wall(name, holds=True)
    advice = WALLS[name][1]
    for one in lacking:
        if one.not_wrapped and name in ("sees_no_other_process", "sees_only_its_files"):
            advice = _advice_on_wrapping(one.not_wrapped)
        elif one.not_wrapped and name == "has_own_identity":
            advice = "It needs bubblewrap, see above."
        elif one.no_own_user and name == "has_own_identity":
            advice = f"{advice} ({one.no_own_user})"
    return Wall(name, holds=False, advice=advice)


def _advice_on_wrapping(reason: str) -> str:
    if "no program" in reason:
        return "Install bubblewrap, with Debian: apt-get install bubblewrap"
    return (
        f"bubblewrap does not work here ({reason}). Allow user namespaces: "
        "user.max_user_namespaces must not be 0, nor AppArmor or a container forbid them."
    )
