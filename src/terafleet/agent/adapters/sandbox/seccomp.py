"""Takes system calls away from a process with a seccomp filter.

Sockets, new processes and whatever reaches into the kernel or into other processes fail with
EPERM. The filter is a classic BPF program as `linux/filter.h` and `linux/seccomp.h` define it.
"""

import ctypes
import errno
import socket
import struct

from terafleet.agent.adapters.sandbox import calls

_SECCOMP_MODE_FILTER = 2
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET = 0x15, 0x35, 0x45
_OFFSET_NUMBER, _OFFSET_MACHINE, _OFFSET_ARGUMENTS = 0, 4, 16

_CLONE_THREAD = 0x10000
_SHARED_ANONYMOUS = 0x01 | 0x20
_SOCKET_TYPE_MASK = 0xF
_X32_BIT = 0x40000000
_ARGUMENT_BYTES = 8
_FLAGS_OF_MMAP = 3

_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Name: number on x86-64, number on aarch64 (None where the machine doesn't have the call), from
# the kernel's tables.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "clone": (56, 220),
    "clone3": (435, 435),
    "mmap": (9, 222),
}
_DENIED_TO_THE_DEAF: dict[str, tuple[int | None, int | None]] = {
    "accept": (43, 202),
    "accept4": (288, 242),
}
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "socketpair": (53, 199),
    "connect": (42, 203),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "io_uring_setup": (425, 425),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict_calls(may_listen: bool) -> bool:
    """Take the calls away; False on a machine or kernel where it isn't possible.

    With `may_listen` a local stream socket may be made and listened on, and whoever shares the
    process's network could connect to it; the process itself still can't. Needs `no_new_privs`.
    """
    instructions = filter_program(calls.machine(), may_listen)
    if instructions is None:
        return False
    program = _Program(len(instructions) // struct.calcsize("=HBBI"), instructions)
    try:
        calls.control_process(calls.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))
    except OSError:
        return False
    return True


def filter_program(machine: str, may_listen: bool) -> bytes | None:
    """The filter for a machine as the kernel takes it; None for an unknown machine."""
    if machine not in _MACHINES:
        return None
    column = list(_MACHINES).index(machine)
    program = [
        _instruction(_LOAD, _OFFSET_MACHINE),
        _instruction(_JUMP_EQUAL, _MACHINES[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _OFFSET_NUMBER),
    ]
    if machine == "x86_64":
        program += [_instruction(_JUMP_AT_LEAST, _X32_BIT, 0, 1), _refuse(errno.EPERM)]
    program += _only_threads(_NUMBERS["clone"][column])
    program += _when(_NUMBERS["clone3"][column], [_refuse(errno.ENOSYS)])
    program += _no_shared_memory(_NUMBERS["mmap"][column])
    program += _sockets(_NUMBERS["socket"][column], may_listen)
    denied = _DENIED if may_listen else _DENIED | _DENIED_TO_THE_DEAF
    for numbers in denied.values():
        program += _when(numbers[column], [_refuse(errno.EPERM)])
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)


def _only_threads(number: int | None) -> list[bytes]:
    """Threads pass, processes don't; the C library uses `clone` where `clone3` is missing."""
    return _when(
        number,
        [
            _argument(0),
            _instruction(_JUMP_SET, _CLONE_THREAD, 1, 0),
            _refuse(errno.EPERM),
            _instruction(_RETURN, _ALLOW),
        ],
    )


def _no_shared_memory(number: int | None) -> list[bytes]:
    """Shared anonymous memory isn't counted by RLIMIT_DATA, so nobody gets any."""
    return _when(
        number,
        [
            _argument(_FLAGS_OF_MMAP),
            _instruction(_AND, _SHARED_ANONYMOUS),
            _instruction(_JUMP_EQUAL, _SHARED_ANONYMOUS, 0, 1),
            _refuse(errno.EPERM),
            _instruction(_RETURN, _ALLOW),
        ],
    )


def _sockets(number: int | None, may_listen: bool) -> list[bytes]:
    if not may_listen:
        return _when(number, [_refuse(errno.EPERM)])
    return _when(
        number,
        [
            _argument(0),
            _instruction(_JUMP_EQUAL, socket.AF_UNIX, 0, 4),
            _argument(1),
            _instruction(_AND, _SOCKET_TYPE_MASK),
            _instruction(_JUMP_EQUAL, socket.SOCK_STREAM, 0, 1),
            _instruction(_RETURN, _ALLOW),
            _refuse(errno.EPERM),
        ],
    )


def _when(number: int | None, block: list[bytes]) -> list[bytes]:
    """`block`, which must end every path with a return, for one system call."""
    if number is None:
        return []
    return [_instruction(_JUMP_EQUAL, number, 0, len(block)), *block]


def _argument(index: int) -> bytes:
    """Load the lower half of an argument; both machines are little-endian."""
    return _instruction(_LOAD, _OFFSET_ARGUMENTS + _ARGUMENT_BYTES * index)


def _refuse(number: int) -> bytes:
    return _instruction(_RETURN, _ERROR | number)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
