"""Takes the file system away from a process except for what it must read, with Landlock.

Constants and structures are those of the kernel's `linux/landlock.h`.
"""

import ctypes
import os
import stat
from collections.abc import Iterable

from terafleet.agent.adapters.sandbox import calls

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
# All rights over files that each version of the interface knows; version 1 has thirteen.
_FILE_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK_SINCE, _BIND_TCP, _CONNECT_TCP = 4, 1 << 0, 1 << 1
_SCOPES_SINCE, _SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 6, 1 << 0, 1 << 1


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_files", ctypes.c_uint64),
        ("handled_network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """The version of the interface that this kernel offers; 0 where it has none."""
    try:
        return calls.call(_CREATE_RULESET, 0, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict_files(readable: Iterable[str], devices: Iterable[str]) -> int:
    """Leave this process only `readable` to read and `devices` to read and write.

    Paths that can't be opened are passed over. Nothing may be executed, TCP is refused, and signals
    and abstract sockets reach no process outside. Needs `no_new_privs`. Returns the version of
    the interface, 0 where the kernel has none and nothing was done.
    """
    version = landlock_version()
    if version == 0:
        return 0
    rights = _FILE_RIGHTS_BY_ABI[max(known for known in _FILE_RIGHTS_BY_ABI if known <= version)]
    ruleset = _Ruleset(
        rights,
        _BIND_TCP | _CONNECT_TCP if version >= _NETWORK_SINCE else 0,
        _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= _SCOPES_SINCE else 0,
    )
    size = ctypes.sizeof(ruleset)
    descriptor = calls.call(_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    try:
        for path in readable:
            _allow(descriptor, path, _READ_FILE | _READ_DIR)
        for path in devices:
            _allow(descriptor, path, _READ_FILE | _WRITE_FILE)
        calls.call(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)
    return version


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # What this process can't reach anyway needs no rule.
        return
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            # The kernel refuses rights over folders on what is none.
            rights &= ~_READ_DIR
        rule = _PathBeneath(rights, parent)
        calls.call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)
