"""Starts a program inside bubblewrap, where it sees what it must read and nothing else.

What this computer allows is tried with the interpreter before the runtime is started so.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from terafleet.agent.adapters.sandbox.own_user import GROUP_ID, free_user_id, lend_models

_PROGRAM: Final = "bwrap"
_TEMPORARY_BYTES: Final = 16 * 1024**2
_NOBODY: Final = "65534"
_TRY_SECONDS_MAX: Final = 20.0
_LINKS_MAX: Final = 8
_SYSTEM_FOLDERS: Final = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64")
_SYSTEM_FILES: Final = ("/etc/ld.so.cache", "/sys/devices/system")
_IN_A_PREFIX: Final = ("bin", "lib", "lib64", "pyvenv.cfg")

# The program is not put into a session of its own: its group must stay the one that the agent
# stops as a whole, and there is no terminal that it could write into.
_NAMESPACES: Final = (
    *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
    *("--unshare-cgroup-try", "--die-with-parent", "--hostname", "car"),
)
_OWN_USER: Final = (
    *("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),
    *("--cap-add", "CAP_SETPCAP"),
)
"""The program changes its user itself, as the first thing it does, and loses these for good."""
_SAME_USER: Final = ("--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY)
_SAME_USER_FOR_GOOD: Final = (*_SAME_USER, "--disable-userns")

_TRY: Final = """
import os, sys
user_id, group_id, *paths = sys.argv[1:]
if int(user_id):
    os.setgroups([])
    os.setresgid(*[int(group_id)] * 3)
    os.setresuid(*[int(user_id)] * 3)
for path in paths:
    os.listdir(path) if os.path.isdir(path) else os.stat(path)
"""


class View(msgspec.Struct, frozen=True):
    """What a program may see beside the interpreter and its libraries, to read only.

    `sources` are the folders that its own code lies in. The whole of `models_folder` is shown,
    because models come into it while the program runs, and a view can't be widened later.
    """

    models_folder: str
    sources: tuple[str, ...]


class Wrapping(msgspec.Struct, frozen=True):
    """How programs are wrapped on this computer; `shown` are the paths inside."""

    program: str
    options: tuple[str, ...]
    shown: tuple[str, ...]
    has_own_identity: bool
    lacks: str = ""
    """Why the program has no user of its own; empty where it has."""

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside."""
        words = [self.program, *_NAMESPACES, *self.options, *_shown(self.shown)]
        return [*words, "--", *command]


class NotWrapped(msgspec.Struct, frozen=True):
    """Programs can't be wrapped on this computer, and why."""

    reason: str


def find_wrapping(view: View) -> Wrapping | NotWrapped:
    """The strictest way to wrap programs that works here; each is tried once and then known.

    Blocks for as long as an interpreter needs to start, or a few times that.
    """
    if os.geteuid() == 0:
        lend_models(Path(view.models_folder))
    return _found(view, sys.executable)


@functools.lru_cache(maxsize=16)
def _found(view: View, interpreter: str) -> Wrapping | NotWrapped:
    program = shutil.which(_PROGRAM)
    if program is None:
        return NotWrapped(f"there is no program {_PROGRAM}")
    shown = tuple(_topmost(_readable(view, interpreter)))
    user_id, lacks = free_user_id(), ""
    if user_id is None:
        lacks = "only root can give a program another user, and this agent is not root"
        if os.geteuid() == 0:
            lacks = "this agent's namespace has no user ids to spare"
    else:
        wrapping = Wrapping(program, _OWN_USER, shown, has_own_identity=True)
        lacks = _fault(wrapping, view, interpreter, user_id)
        if not lacks:
            return wrapping
    fault = ""
    for options in (_SAME_USER_FOR_GOOD, _SAME_USER):
        wrapping = Wrapping(program, options, shown, has_own_identity=False, lacks=lacks)
        fault = _fault(wrapping, view, interpreter, 0)
        if not fault:
            return wrapping
    return NotWrapped(fault)


def _fault(wrapping: Wrapping, view: View, interpreter: str, user_id: int) -> str:
    """What is wrong with a way to wrap programs, in its own words; empty if it works."""
    paths = [path for path in (view.models_folder, *view.sources) if os.path.exists(path)]
    asked = [interpreter, "-I", "-S", "-c", _TRY, str(user_id), str(GROUP_ID), *paths]
    try:
        tried = subprocess.run(
            wrapping.command(asked),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            timeout=_TRY_SECONDS_MAX,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = tried.stderr.decode(errors="replace").strip().splitlines()
    if tried.returncode == 0:
        return ""
    return said[-1] if said else f"{wrapping.program} ended with {tried.returncode}"


def _readable(view: View, interpreter: str) -> Iterator[str]:
    """Every path that the program must be able to read, if it is there."""
    prefixes = (sys.prefix, sys.base_prefix)
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    wanted = (
        *_SYSTEM_FOLDERS,
        *_SYSTEM_FILES,
        *(f"{prefix}/{name}" for prefix in prefixes for name in _IN_A_PREFIX),
        *_links_to(interpreter),
        *(path for path in (*sys.path, *libraries) if path.endswith("-packages")),
        *libraries,
        *view.sources,
        view.models_folder,
    )
    for path in wanted:
        if os.path.isabs(path) and os.path.exists(path):
            yield os.path.normpath(path)


def _links_to(program: str) -> Iterator[str]:
    """A program's own path and those that its links lead over."""
    for _link in range(_LINKS_MAX):
        yield program
        if not os.path.islink(program):
            return
        program = os.path.join(os.path.dirname(program), os.readlink(program))


def _topmost(paths: Iterable[str]) -> Iterator[str]:
    """Paths without those that lie below another of them."""
    taken: set[str] = set()
    for path in sorted(set(paths)):
        if not any(str(parent) in taken for parent in Path(path).parents):
            taken.add(path)
            yield path


def _shown(paths: Iterable[str]) -> Iterator[str]:
    """bubblewrap's words for the whole file system that is seen inside.

    What is shown comes last, since it may lie below one of the kernel's own folders.
    """
    yield from ("--perms", "0755", "--tmpfs", "/", "--proc", "/proc", "--dev", "/dev")
    yield from ("--size", str(_TEMPORARY_BYTES), "--perms", "1777", "--tmpfs", "/tmp")  # noqa: S108
    made: set[str] = set()
    for path in paths:
        for parent in reversed(Path(path).parents[:-1]):
            if str(parent) not in made:
                made.add(str(parent))
                yield from ("--perms", "0755", "--dir", str(parent))
        is_link = Path(path).parent == Path("/") and os.path.islink(path)
        yield from ("--symlink", os.readlink(path), path) if is_link else ("--ro-bind", path, path)
    yield from ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/")
