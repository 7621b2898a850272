"""Finds a user that nothing else on this computer runs as, and lends it the models to read."""

import contextlib
import grp
import itertools
import os
import pwd
import stat
from pathlib import Path
from typing import Final

GROUP_ID: Final = 1_900_000_000
"""The group of all runtimes, which may read the models and nothing else."""

# Above what systemd's table of ids gives to accounts and containers (UIDS-GIDS), below 2^31.
_USER_ID_FIRST: Final = 1_900_000_001
# The kernel numbers processes below 2^22; an agent that has more runtimes at once has users enough.
_USERS_AN_AGENT: Final = 16
_READ_FILE: Final = (stat.S_IROTH, stat.S_IRGRP)
_READ_FOLDER: Final = (stat.S_IROTH | stat.S_IXOTH, stat.S_IRGRP | stat.S_IXGRP)
"""What anybody, and what the group, must be allowed so that the runtime can read."""

_numbers = itertools.count()


def free_user_id() -> int | None:
    """A user id that no account has and no other runtime of this computer; None without one.

    Only root can give it to a program, and only where its user namespace knows such ids.
    """
    user_id = _USER_ID_FIRST + os.getpid() * _USERS_AN_AGENT + next(_numbers) % _USERS_AN_AGENT
    if os.geteuid() != 0 or _has_account(user_id) or not _is_known_here(user_id):
        return None
    return user_id


def lend_models(folder: Path) -> None:
    """Let the runtimes' group read a folder and all below it; others gain nothing.

    What can't be lent is passed over: the runtime then fails to read it, and says so.
    """
    _lend(folder)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _lend(Path(parent, name))


def _lend(path: Path) -> None:
    with contextlib.suppress(OSError):
        # Neither a link nor a pipe that somebody has put there is followed or waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            is_folder = stat.S_ISDIR(facts.st_mode)
            if not is_folder and not stat.S_ISREG(facts.st_mode):
                return
            anybody, group = _READ_FOLDER if is_folder else _READ_FILE
            if facts.st_mode & anybody == anybody:
                return
            os.fchown(descriptor, -1, GROUP_ID)
            os.fchmod(descriptor, stat.S_IMODE(facts.st_mode) & ~stat.S_IWGRP | group)
        finally:
            os.close(descriptor)


def _has_account(user_id: int) -> bool:
    with contextlib.suppress(KeyError):
        pwd.getpwuid(user_id)
        return True
    with contextlib.suppress(KeyError):
        grp.getgrgid(GROUP_ID)
        return True
    return False


def _is_known_here(user_id: int) -> bool:
    """Whether both ids exist in this process's user namespace."""
    return _is_mapped("/proc/self/uid_map", user_id) and _is_mapped("/proc/self/gid_map", GROUP_ID)


def _is_mapped(path: str, one_id: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text("ascii").splitlines():
            first, _outside, count = map(int, line.split())
            if first <= one_id < first + count:
                return True
    return False
