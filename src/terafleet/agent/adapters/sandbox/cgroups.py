"""Bounds a process with control groups, as far as this computer lets the agent make any.

Both versions of the kernel's interface are a row of places (folders) in which a group is made
under one name (cgroup-v1/*.rst and cgroup-v2.rst of the kernel). It doesn't suspend by groups:
stopping a process's group of processes is as fast, and a frozen group can't be killed (v1).
"""

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

PREFIX: Final = "terafleet-"
THREADS_MAX: Final = 256
# Code, page tables and what the kernel holds for a process come on top of the memory lent.
_MEMORY_EXTRA_BYTES: Final = 256 * 1024**2
_CONTROLLERS: Final = ("cpu", "memory", "pids")
_DELEGATED: Final = ("user.delegate", "trusted.delegate")
_REMOVE_TRIES: Final = 50
_REMOVE_WAIT_S: Final = 0.01
_STAT_STARTED: Final = 19
_numbers = itertools.count(1)


class Place(msgspec.Struct, frozen=True):
    """A folder below which groups can be made, and what groups in it can bound."""

    version: int
    folder: Path
    controllers: tuple[str, ...]


class Group:
    """One control group, in each of the places that there are; `holds` are the bounds in force."""

    def __init__(
        self, name: str, places: Iterable[Place], memory_bytes: int, is_idle: bool
    ) -> None:
        """Make it; what can't be made or set is left out."""
        self._folders: list[Path] = []
        self._idle: list[Path] = []
        holds: list[str] = []
        for place in places:
            # A group of its own that isn't bounded would only weigh more than its processes did.
            if place.controllers == ("cpu",) and not is_idle:
                continue
            folder = place.folder / name
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o755)
                self._folders.append(folder)
                holds += self._bound(place, folder, memory_bytes, is_idle)
        self.holds: tuple[str, ...] = tuple(holds)

    def add(self, process_id: int) -> bool:
        """Put a process and all its threads into the group; whether it is in it everywhere."""
        for folder in self._folders:
            procs = folder / "cgroup.procs"
            with contextlib.suppress(OSError):
                procs.write_text(str(process_id), "ascii")
        members = [_read(folder / "cgroup.procs").split() for folder in self._folders]
        return bool(members) and all(str(process_id) in member for member in members)

    def hurry(self) -> None:
        """Let what is in it compute like anybody else: to end takes processor time too."""
        for file in self._idle:
            _set(file, "0")

    def remove(self) -> None:
        """Remove the group, whose processes have ended; the kernel may need a moment for that."""
        for folder in self._folders:
            for _try in range(_REMOVE_TRIES):
                if _is_removed(folder):
                    break
                time.sleep(_REMOVE_WAIT_S)

    def _bound(self, place: Place, folder: Path, memory_bytes: int, is_idle: bool) -> Iterator[str]:
        bounds = _bounds(place.version, memory_bytes + _MEMORY_EXTRA_BYTES)
        for controller in place.controllers:
            if controller == "cpu" and not is_idle:
                continue
            kept = [file for file, value in bounds[controller] if _set(folder / file, value)]
            if kept:
                yield f"cgroup_{place.version}_{controller}"
            if "cpu.idle" in kept:
                self._idle.append(folder / "cpu.idle")


def make_group(memory_bytes: int, is_idle: bool) -> Group | None:
    """A group of the agent's own for one runtime; None where none can be made.

    What agents that have died left behind is removed first. Blocks for some milliseconds.
    """
    usable = _usable()
    sweep(usable)
    name = f"{PREFIX}{os.getpid()}-{_started(os.getpid())}-{next(_numbers)}"
    group = Group(name, usable, memory_bytes, is_idle)
    if not group.holds:
        group.remove()
        return None
    return group


def sweep_here() -> None:
    """Remove what agents that have died left behind where this process may make groups."""
    sweep(_usable())


def places(mountinfo: str, own: str) -> list[Place]:
    """Where the process's own groups lie, by proc_pid_mountinfo(5) and cgroups(7).

    `own` is /proc/PID/cgroup. Only places with a controller that is of use are named; those of
    version 2 are to be seen in its folder.
    """
    paths = {}
    for line in own.splitlines():
        _number, controllers, path = line.split(":", 2)
        paths[controllers] = path
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, mounted = (_unescaped(word) for word in before.split()[3:5])
        kind, _source, options = after.split(" ", 2)
        named = _controllers_of(kind, options, paths)
        if named in paths:
            useful = tuple(one for one in named.split(",") if one in _CONTROLLERS)
            folder = _below(mounted, root, paths[named])
            if kind == "cgroup2" or useful:
                found.append(Place(2 if kind == "cgroup2" else 1, folder, useful))
    return found


def _controllers_of(kind: str, options: str, known: Iterable[str]) -> str:
    """How /proc/PID/cgroup names what is mounted somewhere: empty for version 2; `?` is unknown."""
    if kind == "cgroup2":
        return ""
    offered = set(options.split(","))
    if kind == "cgroup":
        for one in known:
            if one and set(one.split(",")) <= offered:
                return one
    return "?"


def sweep(usable: Iterable[Place]) -> None:
    """Remove the empty groups of agents that have died; others are left alone."""
    for place in usable:
        with contextlib.suppress(OSError):
            for folder in place.folder.glob(f"{PREFIX}*"):
                if not _is_kept(folder.name):
                    _is_removed(folder)


def _usable() -> list[Place]:
    """The places in which this process may make groups."""
    found = places(_read(Path("/proc/self/mountinfo")), _read(Path("/proc/self/cgroup")))
    return [place for place in map(_opened, found) if place is not None]


def _bounds(version: int, memory_bytes: int) -> dict[str, tuple[tuple[str, str], ...]]:
    """The files of each controller and what is written into them."""
    memory = str(memory_bytes)
    if version == 1:
        return {
            "cpu": (("cpu.shares", "2"), ("cpu.idle", "1")),
            "memory": (("memory.limit_in_bytes", memory), ("memory.swappiness", "0")),
            "pids": (("pids.max", str(THREADS_MAX)),),
        }
    return {
        "cpu": (("cpu.weight", "1"), ("cpu.idle", "1")),
        "memory": (("memory.max", memory), ("memory.swap.max", "0")),
        "pids": (("pids.max", str(THREADS_MAX)),),
    }


def _opened(place: Place) -> Place | None:
    """A place with what groups in it can bound; None where the agent can't make any."""
    if place.version == 1:
        return place if os.access(place.folder, os.W_OK) else None
    for folder in (place.folder, place.folder.parent):
        if folder != place.folder and not _is_delegated(folder):
            continue
        for controller in _CONTROLLERS:
            # A group that has processes itself can't hand out controllers: those are then missing.
            _set(folder / "cgroup.subtree_control", f"+{controller}")
        handed = _read(folder / "cgroup.subtree_control").split()
        controllers = tuple(one for one in _CONTROLLERS if one in handed)
        if controllers and os.access(folder, os.W_OK):
            return Place(2, folder, controllers)
    return None


def _is_delegated(folder: Path) -> bool:
    """Whether systemd says that what lies below a group is its service's own business."""
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            return os.getxattr(folder, name) == b"1"
    return False


def _below(mounted: str, root: str, path: str) -> Path:
    """The folder of a group, given the group that is mounted and where."""
    relative = os.path.relpath(path, root)
    return Path(mounted) if relative.startswith("..") else Path(mounted, relative)


def _is_kept(name: str) -> bool:
    """Whether a group's agent lives, or the name is none of ours."""
    found = re.fullmatch(re.escape(PREFIX) + r"(\d+)-(\d+)-\d+", name)
    return found is None or _started(int(found[1])) == int(found[2])


def _started(process_id: int) -> int:
    """When a process was started, in the kernel's ticks; -1 if it is gone."""
    fields = _read(Path(f"/proc/{process_id}/stat")).rpartition(")")[2].split()
    return int(fields[_STAT_STARTED]) if fields else -1


def _is_removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _set(file: Path, value: str) -> bool:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, value.encode("ascii"))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
