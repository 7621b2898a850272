"""Tries to get out, with walls around it or without, and prints what worked as JSON.

`free` has no walls around it, `kept` and `listening` have some; what it is told of its targets
says whether it was wrapped as well.
"""

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from terafleet.agent.adapters.sandbox.linux import Walls, enclose

mode, targets = sys.argv[1], json.loads(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
PTRACE_SEIZE = 0x4206
THREADS_TOO_MANY = 300
PIECE_BYTES = 1 << 20
IO_URING_SETUP = 425


def connect(family: int, kind: int, address: Any) -> None:
    """Reach a socket."""
    with socket.socket(family, kind) as one:
        one.settimeout(5)
        one.connect(address)
        if kind == socket.SOCK_DGRAM:
            one.send(b"hello")


def make_process() -> None:
    """Start a copy of this process."""
    process_id = os.fork()
    if process_id == 0:
        os._exit(0)
    os.waitpid(process_id, 0)


def gain_privileges() -> None:
    """Become the root of a new user namespace; in a process of its own where that is possible."""
    process_id = os.fork()
    if process_id == 0:
        os._exit(0 if libc.unshare(CLONE_NEWUSER) == 0 else 1)
    if os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) != 0:
        raise PermissionError


def take_memory(kind: int) -> None:
    """More memory than was lent."""
    with mmap.mmap(-1, targets["memory_bytes"] + (1 << 20), kind | mmap.MAP_ANONYMOUS):
        pass


def take_memory_in_pieces() -> None:
    """The same, a little at a time."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with contextlib.ExitStack() as stack:
        for _piece in range(targets["memory_bytes"] // PIECE_BYTES + 1):
            stack.enter_context(mmap.mmap(-1, PIECE_BYTES, private))


def start_threads() -> None:
    """Far more threads than any runtime needs."""
    end, threads = threading.Event(), []
    threading.stack_size(64 * 1024)
    try:
        for _number in range(THREADS_TOO_MANY):
            thread = threading.Thread(target=end.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        raise PermissionError from error
    finally:
        end.set()
        for thread in threads:
            thread.join()


def trace() -> None:
    """Get hold of another process's memory, as a debugger does."""
    if libc.ptrace(PTRACE_SEIZE, targets["neighbour"], None, None) != 0:
        raise PermissionError


def see_others() -> None:
    """Find out what else runs on the computer."""
    strangers = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    if strangers <= {1, os.getpid()}:
        raise PermissionError


def make_ring() -> None:
    """A queue of system calls that no filter of calls sees."""
    room = ctypes.create_string_buffer(240)
    descriptor = libc.syscall(IO_URING_SETUP, 4, room)
    if descriptor < 0 and ctypes.get_errno() == 1:
        raise PermissionError


def write(path: str) -> None:
    """Leave something on the disk."""
    with open(path, "a", encoding="ascii") as file:
        file.write("x")


def run_program() -> None:
    """Start another program."""
    subprocess.run(["/bin/true"], check=True)


def read_environment() -> None:
    """Read the agent's environment, where secrets may lie."""
    Path(f"/proc/{targets['agent']}/environ").read_bytes()


def reach_6() -> None:
    """Reach a socket by the newer protocol."""
    connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", targets["tcp6"]))


folder, models = targets["folder"], targets["models"]
TRIES: dict[str, Callable[[], object]] = {
    **({"tcp 6": reach_6} if targets.get("tcp6") else {}),
    "tcp": lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", targets["tcp"])),
    "udp": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", targets["udp"])),
    "local socket": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, targets["local"]),
    "abstract socket": lambda: connect(
        socket.AF_UNIX, socket.SOCK_STREAM, "\0" + targets["abstract"]
    ),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "socket pair": socket.socketpair,
    "ring": make_ring,
    "write beside the models": lambda: write(f"{models}/new"),
    "write over a model": lambda: write(f"{models}/weights"),
    "write elsewhere": lambda: write(f"{folder}/new"),
    "write to shared memory": lambda: write(f"/dev/shm/terafleet-{os.getpid()}"),  # noqa: S108
    "read a secret": lambda: Path(folder, "secret").read_text(encoding="ascii"),
    "read a secret beside the models": lambda: Path(models, "../secret").read_text("ascii"),
    "read a secret behind a link": lambda: Path(models, "link").read_text("ascii"),
    "read a secret by another's root": lambda: Path(
        f"/proc/{targets['neighbour']}/root{folder}/secret"
    ).read_bytes(),
    "look into the homes": lambda: os.listdir("/home"),
    "read the passwords' list": lambda: Path("/etc/passwd").read_bytes(),
    "read the agent's environment": read_environment,
    "signal the agent": lambda: os.kill(targets["agent"], 0),
    "trace a neighbour": trace,
    "see others": see_others,
    "process": make_process,
    "program": run_program,
    "new privileges": gain_privileges,
    "private memory": lambda: take_memory(mmap.MAP_PRIVATE),
    "shared memory": lambda: take_memory(mmap.MAP_SHARED),
    "memory in pieces": take_memory_in_pieces,
    "threads without end": start_threads,
    "memory in a file": lambda: os.close(os.memfd_create("room")),
}


def works(attempt: Callable[[], object]) -> bool:
    """Whether something can be done."""
    try:
        attempt()
    except OSError:
        return False
    return True


def needs() -> dict[str, bool]:
    """What a runtime needs and must still have."""
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    return {
        "read a model": works(lambda: Path(models, "weights").read_bytes()),
        "read a library": works(lambda: Path(socket.__file__).read_bytes()),
        "take some memory": works(lambda: mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE).close()),
        "thread": True,
    }


outcome: dict[str, object] = {}
if mode != "free":
    signal.signal(signal.SIGSYS, signal.SIG_DFL)
    walls = Walls(
        models_folder=models,
        memory_bytes=targets["memory_bytes"],
        niceness=0,
        parent_id=os.getppid(),
        may_listen=mode == "listening",
        **targets.get("wrapped", {}),
    )
    outcome["report"] = msgspec.to_builtins(enclose(walls).report)
if targets.get("crashes"):
    os.abort()
outcome["tries"] = {name: works(attempt) for name, attempt in TRIES.items()}
outcome["needs"] = needs()
print(json.dumps(outcome))
