"""Tries from inside whether the walls around this process hold; claims only what it saw."""

import contextlib
import mmap
import os
import re
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from terafleet.agent.adapters.sandbox import calls

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")

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
# What the kernel offers itself, beside what was asked to be shown (proc_pid_mountinfo(5)).
_MOUNTED_BY_ITSELF = re.compile(r"/|/tmp|(/proc|/dev)(/.*)?")
_WRITABLE_BY_ITSELF = re.compile(r"/tmp|/proc|/dev/.+")  # noqa: S108 - a small one of its own.
_STACK_BYTES: Final = 64 * 1024


class Listener:
    """A socket outside the walls that shows from inside whether the network is out of reach."""

    def __enter__(self) -> "Listener":
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


def namespaces() -> dict[str, str]:
    """The kernel's names for the namespaces of this process; those that it doesn't have are out."""
    found = {}
    for name in NAMESPACES:
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/ns/{name}")
    return found


def own_namespaces(outside: Mapping[str, str]) -> frozenset[str]:
    """The kinds of namespaces in which this process differs from one outside."""
    return frozenset(name for name, own in namespaces().items() if outside.get(name, own) != own)


def is_network_empty() -> bool:
    """Whether this process's network has nothing but a loopback that nobody else is on."""
    return {name for _index, name in socket.if_nameindex()} <= {"lo"} and not _is_routed()


def are_others_hidden() -> bool:
    """Whether /proc shows no process but this one and the first of its namespace."""
    shown = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    return bool(shown) and shown <= {1, os.getpid()}


def is_view_narrow(shown: Iterable[str]) -> bool:
    """Whether all that is mounted for this process is what was to be shown, and read-only."""
    wanted = frozenset(shown)
    lines = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    return bool(lines) and all(_is_wanted(line, wanted) for line in lines)


def are_sockets_refused(may_listen: bool) -> bool:
    """Whether no socket can be made; where one may listen, whether it can't connect."""
    for family in _FAMILIES:
        for kind in _KINDS:
            if may_listen and (family, kind) == (socket.AF_UNIX, socket.SOCK_STREAM):
                continue
            with contextlib.suppress(OSError), socket.socket(family, kind):
                return False
    return not may_listen or _is_connecting_refused()


def is_without_privileges() -> bool:
    """Whether no capability is left and none can be gained by starting a program."""
    has_promise = calls.control_process(calls.PR_GET_NO_NEW_PRIVS) == 1
    return has_promise and not calls.has_capabilities()


def is_memory_refused(memory_bytes: int) -> bool:
    """Whether neither private nor shared memory of the bound's size can be had."""
    for kind in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
        # A memory map refuses sizes beyond the address space by itself, which proves nothing.
        assert memory_bytes < 1 << 46
        with contextlib.suppress(OSError), mmap.mmap(-1, memory_bytes, kind | mmap.MAP_ANONYMOUS):
            return False
    return True


def are_files_refused(models_folder: str) -> bool:
    """Whether nothing can be written where programs usually write, nor among models and code."""
    usual = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/", os.getcwd())  # noqa: S108
    homes = (os.path.expanduser("~"), os.environ.get("TMPDIR", "/"))
    code = (*sys.path, sys.prefix, str(Path(__file__).parent))
    return not any(_is_writable(folder) for folder in {*usual, *homes, *code, models_folder})


def is_dumped_never() -> bool:
    """Whether the kernel keeps no image of this process when it crashes, not even for a program."""
    is_private = calls.control_process(calls.PR_GET_DUMPABLE) == 0
    return is_private and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)


def are_threads_refused() -> bool:
    """Whether the bound on threads is obeyed, seen with a bound of one for a moment.

    Must be called while there is one thread.
    """
    bound, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if bound == resource.RLIM_INFINITY:
        return False
    previous = threading.stack_size(_STACK_BYTES)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    try:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    except RuntimeError:
        return True
    else:
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (bound, hard))
        threading.stack_size(previous)


def is_parent_followed(parent_id: int) -> bool:
    """Whether the kernel ends this process with that parent."""
    return calls.death_signal() == signal.SIGKILL and os.getppid() == parent_id


def _is_wanted(line: str, wanted: frozenset[str]) -> bool:
    """Whether a mount is one of those that were to be shown, and can't be written to."""
    fields = line.split()
    path = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
    if _MOUNTED_BY_ITSELF.fullmatch(path):
        return bool(_WRITABLE_BY_ITSELF.fullmatch(path)) or "ro" in fields[5].split(",")
    is_shown = path in wanted or any(str(parent) in wanted for parent in Path(path).parents)
    return is_shown and "ro" in fields[5].split(",")


def _is_routed() -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(_UNREACHABLE_PROBE)
    except OSError:
        return False
    return True


def _is_connecting_refused() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
        try:
            local.connect("\0terafleet-probe")
        except PermissionError:
            return True
        except OSError:
            return False
    return False


def _is_writable(folder: str) -> bool:
    path = Path(folder or ".", f".terafleet-probe-{os.getpid()}")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    os.close(descriptor)
    path.unlink()
    return True
