"""Embeds a text in a process that the kernel kills at its first socket; waits for its input."""

import ctypes
import platform
import struct
import sys
from pathlib import Path

NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
KILL, ALLOW = 0x80000000, 0x7FFF0000
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]


class Program(ctypes.Structure):
    """A filter as the kernel takes it."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


instructions = [
    (LOAD, 0, 0, 0),
    (JUMP_EQUAL, 0, 1, SOCKET),
    (RETURN, 0, 0, KILL),
    (RETURN, 0, 0, ALLOW),
]
packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
libc = ctypes.CDLL(None)
assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(Program(4, packed)), 0, 0) == 0

# Not through our encoder, which would turn the telemetry off by itself.
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

session = onnxruntime.InferenceSession(Path(sys.argv[1], "model.onnx"))
ones = np.ones((1, 8), np.int64)
(vectors,) = session.run(None, {"input_ids": ones, "attention_mask": ones})
print(vectors.shape[1], flush=True)
sys.stdin.read()
