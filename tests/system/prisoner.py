"""Tries to get out, with walls around it or without, and prints what worked as JSON."""

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
CLONE_NEWUSER, PTRACE_ATTACH = 0x10000000, 16
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


folder, models = targets["folder"], targets["models"]
TRIES: dict[str, Callable[[], object]] = {
    "tcp": lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", targets["tcp"])),
    "udp": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", targets["udp"])),
    "local socket": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, targets["local"]),
    "abstract socket": lambda: connect(
        socket.AF_UNIX, socket.SOCK_STREAM, "\0" + targets["abstract"]
    ),
    "socket pair": socket.socketpair,
    "ring": make_ring,
    "write beside the models": lambda: write(f"{models}/new"),
    "write over a model": lambda: write(f"{models}/weights"),
    "write elsewhere": lambda: write(f"{folder}/new"),
    "write to shared memory": lambda: write(f"/dev/shm/terafleet-{os.getpid()}"),  # noqa: S108
    "read a secret": lambda: Path(folder, "secret").read_text(encoding="ascii"),
    "read the passwords' list": lambda: Path("/etc/passwd").read_bytes(),
    "read the agent's environment": read_environment,
    "signal the agent": lambda: os.kill(targets["agent"], 0),
    "process": make_process,
    "program": run_program,
    "new privileges": gain_privileges,
    "private memory": lambda: take_memory(mmap.MAP_PRIVATE),
    "shared memory": lambda: take_memory(mmap.MAP_SHARED),
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
        niceness=1,
        parent_id=os.getppid(),
        may_listen=mode == "listening",
    )
    outcome["report"] = msgspec.to_builtins(enclose(walls).report)
outcome["tries"] = {name: works(attempt) for name, attempt in TRIES.items()}
outcome["needs"] = needs()
print(json.dumps(outcome))
