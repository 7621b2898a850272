"""Puts walls around the process that calls it and reports which of them were seen to hold.

A wall that the kernel doesn't offer is left out of the report, never assumed. It doesn't decide
whether what holds is enough.
"""

import contextlib
import mmap
import os
import resource
import signal
import socket
import sys
import sysconfig
from pathlib import Path
from typing import Final

import msgspec

from terafleet.agent.adapters.sandbox import calls
from terafleet.agent.adapters.sandbox.landlock import restrict_files
from terafleet.agent.adapters.sandbox.seccomp import restrict_calls
from terafleet.agent.ports import SandboxReport

_OPEN_FILES_MAX = 256
# Room for code, read-only maps of model files and reserved addresses beside the memory itself.
_ADDRESSES_EXTRA_BYTES = 2 * 1024**3
_MOST_KILLABLE: Final = "1000"

_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
# What numeric libraries ask about the processor before they choose their code.
_MACHINE_FILES = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

_FAMILIES = (
    socket.AF_INET,
    socket.AF_INET6,
    socket.AF_UNIX,
    socket.AF_NETLINK,
    socket.AF_PACKET,
    socket.AF_VSOCK,
)
_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)
# RFC 5737 sets this network aside for documentation; connecting a datagram socket sends nothing.
_UNREACHABLE_PROBE = ("192.0.2.1", 9)


class Walls(msgspec.Struct, frozen=True):
    """What to build.

    `models_folder` may be read beside the program's own libraries. `memory_bytes` bounds what
    the process can allocate. `niceness` is added to the process's own. `parent_id` is the
    process that must outlive this one. `may_listen` lets a library have a local socket.
    """

    models_folder: str
    memory_bytes: int
    niceness: int
    parent_id: int
    may_listen: bool = False


class Enclosure(msgspec.Struct, frozen=True):
    """What was seen to hold, and the kernel's mechanisms that make it hold."""

    report: SandboxReport
    mechanisms: tuple[str, ...]


def enclose(walls: Walls) -> Enclosure:
    """Build the walls around this process, try each from the inside, and say which hold.

    Must be called once, while the process has one thread and before foreign code is loaded.
    Ends the process if the parent is already gone. Raises OSError where the kernel refuses
    what it always grants.
    """
    mechanisms: list[str] = []
    with _Listener() as listener:
        _behave(walls)
        mechanisms += calls.leave_network()
        is_network_left = bool(mechanisms) and listener.is_cut_off()
    _die_with(walls.parent_id)
    _limit_memory(walls.memory_bytes)
    calls.drop_capabilities()
    calls.control_process(calls.PR_SET_NO_NEW_PRIVS, 1)
    landlock = restrict_files(_readable(walls.models_folder), _DEVICES)
    if landlock:
        mechanisms.append(f"landlock_{landlock}")
    if restrict_calls(walls.may_listen):
        mechanisms.append("seccomp")
    are_sockets_refused = _are_sockets_refused(walls.may_listen)
    # Who may listen is out of reach only in a network of its own; others need no network at all.
    walls_needed = (is_network_left, are_sockets_refused)
    report = SandboxReport(
        has_no_network=all(walls_needed) if walls.may_listen else any(walls_needed),
        dies_with_agent=calls.death_signal() == signal.SIGKILL and os.getppid() == walls.parent_id,
        cannot_gain_privileges=_is_without_privileges(),
        has_limited_memory=_is_memory_refused(walls.memory_bytes),
        filesystem_read_only=_are_files_refused(walls.models_folder),
    )
    return Enclosure(report, tuple(mechanisms))


class _Listener:
    """A socket outside the walls that shows from inside whether the network is out of reach."""

    def __enter__(self) -> "_Listener":
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._was_reached = self._is_reached()
        return self

    def __exit__(self, *_details: object) -> None:
        self._socket.close()

    def is_cut_off(self) -> bool:
        """Whether what could be reached before can't be reached any more, nor anything else."""
        return self._was_reached and not self._is_reached() and not _is_routed()

    def _is_reached(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self._socket.getsockname()):
            return True
        return False


def _is_routed() -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(_UNREACHABLE_PROBE)
    except OSError:
        return False
    return True


def _behave(walls: Walls) -> None:
    """Stand behind everything else on this computer, and leave nothing behind."""
    os.nice(walls.niceness)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_MOST_KILLABLE, encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES_MAX)


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


def _readable(models_folder: str) -> list[str]:
    """The folders with the interpreter, its libraries, this program and the models."""
    installed = sysconfig.get_paths()
    libraries = [installed[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    imports = [path for path in sys.path if path and Path(path).is_absolute()]
    interpreter = [f"{prefix}/lib" for prefix in {sys.prefix, sys.base_prefix}]
    own = [*libraries, *imports, *interpreter, models_folder]
    return [*_SYSTEM_FOLDERS, *_MACHINE_FILES, *own]


def _are_sockets_refused(may_listen: bool) -> bool:
    """Whether no socket can be made; where one may listen, whether it can't connect."""
    for family in _FAMILIES:
        for kind in _KINDS:
            if may_listen and (family, kind) == (socket.AF_UNIX, socket.SOCK_STREAM):
                continue
            with contextlib.suppress(OSError), socket.socket(family, kind):
                return False
    return not may_listen or _is_connecting_refused()


def _is_connecting_refused() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
        try:
            local.connect("\0terafleet-probe")
        except PermissionError:
            return True
        except OSError:
            return False
    return False


def _is_without_privileges() -> bool:
    has_promise = calls.control_process(calls.PR_GET_NO_NEW_PRIVS) == 1
    return has_promise and not calls.has_capabilities()


def _is_memory_refused(memory_bytes: int) -> bool:
    """Whether neither private nor shared memory of the bound's size can be had."""
    for kind in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
        # A memory map refuses sizes beyond the address space by itself, which proves nothing.
        assert memory_bytes < 1 << 46
        with contextlib.suppress(OSError), mmap.mmap(-1, memory_bytes, kind | mmap.MAP_ANONYMOUS):
            return False
    return True


def _are_files_refused(models_folder: str) -> bool:
    """Whether nothing can be written where programs usually write, nor among models and code."""
    usual = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/", os.getcwd())  # noqa: S108
    homes = (os.path.expanduser("~"), os.environ.get("TMPDIR", "/"))
    code = (*sys.path, sys.prefix, str(Path(__file__).parent))
    return not any(_is_writable(folder) for folder in {*usual, *homes, *code, models_folder})


def _is_writable(folder: str) -> bool:
    path = Path(folder or ".", f".terafleet-probe-{os.getpid()}")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    os.close(descriptor)
    path.unlink()
    return True
