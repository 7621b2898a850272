"""Puts walls around the process that calls it and reports which of them were seen to hold.

A wall that the kernel doesn't offer is left out of the report, never assumed. It doesn't decide
whether what holds is enough.
"""

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from terafleet.agent.adapters.sandbox import calls, tries
from terafleet.agent.adapters.sandbox.landlock import restrict_files
from terafleet.agent.adapters.sandbox.seccomp import restrict_calls
from terafleet.agent.ports import SandboxReport

_OPEN_FILES_MAX = 256
_THREADS_MAX = 256
# Room for code, read-only maps of model files and reserved addresses beside the memory itself.
_ADDRESSES_EXTRA_BYTES = 2 * 1024**3
_MOST_KILLABLE: Final = "1000"
_LOWEST_OF_SESSIONS: Final = b"19"

_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
# What numeric libraries ask about the processor before they choose their code.
_MACHINE_FILES = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class Walls(msgspec.Struct, frozen=True):
    """What to build.

    `models_folder` may be read beside the program's own libraries. `memory_bytes` bounds what
    the process can allocate. `niceness` is added to the process's own. `parent_id` is the
    process that must outlive this one. `may_listen` lets a library have a local socket. For a
    process that was wrapped, `shown` are the paths that it may see, `outside` the agent's
    namespaces and `user_id` and `group_id` who it is to become, 0 to stay who it is.
    """

    models_folder: str
    memory_bytes: int
    niceness: int
    parent_id: int
    may_listen: bool = False
    shown: tuple[str, ...] = ()
    outside: Mapping[str, str] = {}
    user_id: int = 0
    group_id: int = 0


class Enclosure(msgspec.Struct, frozen=True):
    """What was seen to hold, and the kernel's mechanisms that make it hold.

    `session_weight` is the open file that says what this session weighs against others, or None.
    """

    report: SandboxReport
    mechanisms: tuple[str, ...]
    session_weight: int | None = None

    def stand_back(self) -> None:
        """Let this session compute behind all others, as soon as its program is ready to work.

        A kernel with groups for sessions weighs them against each other, whatever the priorities
        in them (sched(7), autogroup). Those of the threads are the agent's to set.
        """
        if self.session_weight is not None:
            with contextlib.suppress(OSError):
                os.write(self.session_weight, _LOWEST_OF_SESSIONS)
            os.close(self.session_weight)


class _Wrapping(msgspec.Struct, frozen=True):
    """What the program that wrapped this process was seen to give."""

    has_own_network: bool
    has_own_identitys: bool
    sees_no_other_process: bool
    sees_only_its_files: bool


def enclose(walls: Walls) -> Enclosure:
    """Build the walls around this process, try each from the inside, and say which hold.

    Must be called once, while the process has one thread and before foreign code is loaded.
    Ends the process if the parent is already gone. Raises OSError where the kernel refuses
    what it always grants.
    """
    _behave(walls)
    session_weight = _opened("/proc/self/autogroup") if walls.niceness > 0 else None
    mechanisms: list[str] = []
    wrapping = _look_around(walls)
    is_counted_alone = wrapping.has_own_identitys or bool(walls.user_id)
    if walls.shown:
        mechanisms.append("bubblewrap")
        is_network_left = wrapping.has_own_network
    else:
        is_network_left = _leave_network(mechanisms)
        is_counted_alone = "user_namespace" in mechanisms
    if walls.user_id:
        calls.become(walls.user_id, walls.group_id)
        mechanisms.append("own_user")
    # Only behind the change of the user: the kernel forgets both with it.
    calls.control_process(calls.PR_SET_DUMPABLE, 0)
    _die_with(walls.parent_id)
    _limit_memory(walls.memory_bytes)
    if is_counted_alone:
        # Elsewhere the kernel would count whatever else this user runs.
        _lower(resource.RLIMIT_NPROC, _THREADS_MAX)
    calls.drop_capabilities()
    calls.control_process(calls.PR_SET_NO_NEW_PRIVS, 1)
    landlock = restrict_files(_readable(walls.models_folder), _DEVICES)
    if landlock:
        mechanisms.append(f"landlock_{landlock}")
    if restrict_calls(walls.may_listen):
        mechanisms.append("seccomp")
    are_sockets_refused = tries.are_sockets_refused(walls.may_listen)
    # Who may listen is out of reach only in a network of its own; others need no network at all.
    walls_needed = (is_network_left, are_sockets_refused)
    report = SandboxReport(
        has_no_network=all(walls_needed) if walls.may_listen else any(walls_needed),
        dies_with_agent=tries.is_parent_followed(walls.parent_id),
        cannot_gain_privileges=tries.is_without_privileges(),
        has_limited_memory=tries.is_memory_refused(walls.memory_bytes),
        filesystem_read_only=tries.are_files_refused(walls.models_folder),
        sees_no_other_process=wrapping.sees_no_other_process,
        sees_only_its_files=wrapping.sees_only_its_files,
        leaves_no_memory_image=tries.is_dumped_never(),
        has_own_identity=_is_user(walls.user_id, walls.group_id),
        has_limited_threads=tries.are_threads_refused(),
    )
    return Enclosure(report, tuple(mechanisms), session_weight)


def _look_around(walls: Walls) -> _Wrapping:
    """What can be seen from here, while the process may still look."""
    own = tries.own_namespaces(walls.outside)
    return _Wrapping(
        has_own_network="net" in own and tries.is_network_empty(),
        has_own_identitys="user" in own,
        sees_no_other_process="pid" in own and tries.are_others_hidden(),
        sees_only_its_files="mnt" in own and tries.is_view_narrow(walls.shown),
    )


def _leave_network(mechanisms: list[str]) -> bool:
    """Go into a network of its own and say by what; whether the old one is out of reach."""
    with tries.Listener() as listener:
        made = calls.leave_network()
        mechanisms += made
        return bool(made) and listener.is_cut_off()


def _behave(walls: Walls) -> None:
    """Stand behind everything else on this computer, and leave nothing behind."""
    os.nice(walls.niceness)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_MOST_KILLABLE, encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES_MAX)


def _opened(path: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    return None


def _die_with(parent_id: int) -> None:
    """Ask for death with the parent; it may have died before the kernel knew of the wish."""
    calls.control_process(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_id:
        os.kill(os.getpid(), signal.SIGKILL)


def _limit_memory(memory_bytes: int) -> None:
    _lower(resource.RLIMIT_DATA, memory_bytes)
    _lower(resource.RLIMIT_AS, 2 * memory_bytes + _ADDRESSES_EXTRA_BYTES)


def _lower(limit: int, wanted: int) -> None:
    """Lower a limit for good; one that is already lower stays."""
    _soft, hard = resource.getrlimit(limit)
    bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(limit, (bound, bound))


def _is_user(user_id: int, group_id: int) -> bool:
    """Whether the process is the user that it was to become, and in no other group."""
    is_user = os.getresuid() == (user_id,) * 3 and os.getresgid() == (group_id,) * 3
    return user_id != 0 and is_user and set(os.getgroups()) <= {group_id}


def _readable(models_folder: str) -> list[str]:
    """The folders with the interpreter, its libraries, this program and the models."""
    installed = sysconfig.get_paths()
    libraries = [installed[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    imports = [path for path in sys.path if path and Path(path).is_absolute()]
    interpreter = [f"{prefix}/lib" for prefix in {sys.prefix, sys.base_prefix}]
    own = [*libraries, *imports, *interpreter, models_folder]
    return [*_SYSTEM_FOLDERS, *_MACHINE_FILES, *own]
