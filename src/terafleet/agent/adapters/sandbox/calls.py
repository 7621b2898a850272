"""The kernel's calls that Python doesn't offer, by ctypes."""

import contextlib
import ctypes
import os
import platform
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39

CAPABILITY_LAST = 63
_CAPABILITY_VERSION_3 = 0x20080522

_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process_id", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def machine() -> str:
    """The instruction set, as the kernel names it: `x86_64`, `aarch64` …"""
    return platform.machine()


def call(number: int, *arguments: object) -> int:
    """A system call by its number; its result. Raises OSError."""
    return _checked(_LIBC.syscall(ctypes.c_long(number), *map(_word, arguments)))


def control_process(option: int, argument: object = 0, second: object = 0) -> int:
    """prctl(2) with arguments that are numbers or addresses. Raises OSError."""
    rest = (ctypes.c_ulong(0), ctypes.c_ulong(0))
    return _checked(_LIBC.prctl(option, _word(argument), _word(second), *rest))


def leave_network() -> tuple[str, ...]:
    """Move this process into a network of its own without any way out; names what was made.

    Where a user namespace isn't allowed, a privileged process still gets its own network. The
    result is empty where neither is allowed. Must be called while there is one thread.
    """
    user_id, group_id = os.getuid(), os.getgid()
    if _unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC):
        # Without them the process has no name for its user, which changes nothing else.
        with contextlib.suppress(OSError):
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user_id} {user_id} 1")
            _write("/proc/self/gid_map", f"{group_id} {group_id} 1")
        return ("user_namespace", "network_namespace")
    return ("network_namespace",) if _unshare(_CLONE_NEWNET | _CLONE_NEWIPC) else ()


def become(user_id: int, group_id: int) -> None:
    """Be another user in one group only, for good. Raises OSError where that isn't allowed."""
    _narrow_bounds()
    os.setgroups([])
    os.setresgid(group_id, group_id, group_id)
    os.setresuid(user_id, user_id, user_id)


def drop_capabilities() -> None:
    """Give up every capability, for this process and for all that it might start."""
    _narrow_bounds()
    header, sets = _capability_arguments()
    _checked(_LIBC.capset(ctypes.byref(header), ctypes.byref(sets)))


def _narrow_bounds() -> None:
    """Let no program that this process might start get a capability."""
    for capability in range(CAPABILITY_LAST + 1):
        try:
            control_process(PR_CAPBSET_DROP, capability)
        except OSError:
            # The kernel knows fewer of them, or the process wasn't privileged to begin with.
            break


def has_capabilities() -> bool:
    """Whether the process holds any capability at all."""
    header, sets = _capability_arguments()
    _checked(_LIBC.capget(ctypes.byref(header), ctypes.byref(sets)))
    return any(half.effective | half.permitted | half.inheritable for half in sets)


def death_signal() -> int:
    """The signal that this process gets when its parent dies; 0 for none."""
    signal_number = ctypes.c_int(0)
    control_process(PR_GET_PDEATHSIG, ctypes.byref(signal_number))
    return signal_number.value


def _capability_arguments() -> tuple[_CapabilityHeader, "ctypes.Array[_CapabilitySets]"]:
    return _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_CapabilitySets * 2)()


def _word(argument: object) -> object:
    # The kernel reads whole registers, so a number must fill one.
    return ctypes.c_ulong(argument) if isinstance(argument, int) else argument


def _unshare(flags: int) -> bool:
    return int(_LIBC.unshare(flags)) == 0


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
