"""The small parts of the runtime: frames, batches, shares of the processor, numbers, filters."""

import os
import struct
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.adapters.sandbox.seccomp import filter_program
from terafleet.agent.runtime_host.batches import plan_batches
from terafleet.agent.runtime_host.frames import (
    FRAME_BYTES_MAX,
    FrameCutOff,
    FrameSplitter,
    FrameTooLong,
    length_prefix,
    read_body,
    write_body,
)
from terafleet.agent.runtime_host.processor import ProcessorShares
from terafleet.agent.runtime_host.vectors import as_numbers, nine_digits


@given(st.lists(st.binary(max_size=300)), st.integers(1, 50))
def test_frames_survive_however_a_pipe_cuts_them(bodies: list[bytes], step: int) -> None:
    stream = b"".join(length_prefix(body) + body for body in bodies)
    splitter = FrameSplitter()
    found = []
    for begin in range(0, len(stream), step):
        found += splitter.feed(stream[begin : begin + step])
    assert found == bodies


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    prefix = (FRAME_BYTES_MAX + 1).to_bytes(4, "little")
    with pytest.raises(FrameTooLong):
        FrameSplitter().feed(prefix)
    reader, writer = os.pipe()
    os.write(writer, prefix)
    with pytest.raises(FrameTooLong):
        read_body(reader)
    os.close(reader)
    os.close(writer)
    with pytest.raises(FrameTooLong):
        length_prefix(bytes(FRAME_BYTES_MAX + 1))


def test_a_pipe_carries_bodies_larger_than_itself() -> None:
    reader, writer = os.pipe()
    body = os.urandom(1 << 20)
    sender = threading.Thread(target=write_body, args=(writer, body))
    sender.start()
    assert read_body(reader) == body
    sender.join()
    os.close(writer)
    assert read_body(reader) is None
    os.close(reader)


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_pipe_that_ends_inside_a_frame_is_noticed(cut: int) -> None:
    reader, writer = os.pipe()
    os.write(writer, (length_prefix(b"abc") + b"abc")[:cut])
    os.close(writer)
    with pytest.raises(FrameCutOff):
        read_body(reader)
    os.close(reader)


@given(st.lists(st.integers(1, 600), max_size=200))
def test_batches_hold_every_text_once_and_little_padding(lengths: list[int]) -> None:
    batches = plan_batches(lengths)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = lengths[batch[0]]
        assert longest == max(lengths[position] for position in batch)
        assert len(batch) == 1 or longest * len(batch) <= 512
        # Padding is taken only where it is cheaper than another batch.
        padding = sum(longest - lengths[position] for position in batch)
        assert padding <= 7 * len(batch)


def test_texts_of_one_length_go_together() -> None:
    assert [len(batch) for batch in plan_batches([64] * 20)] == [8, 8, 4]


def test_attempts_share_the_processor_while_they_run_together() -> None:
    used_ns = 0
    shares = ProcessorShares(lambda: used_ns)
    shares.begin(1)
    used_ns = 10_000_000
    shares.begin(2)
    used_ns = 30_000_000
    assert shares.end_ms(1) == 10 + 10
    used_ns = 35_000_000
    assert shares.end_ms(2) == 10 + 5


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_nine_digits_give_every_number_back(numbers: list[float]) -> None:
    vector = np.array(numbers, np.float32)
    np.testing.assert_array_equal(nine_digits(vector).astype(np.float32), vector)


def test_numbers_print_short() -> None:
    vector = np.array([0.5, -0.25, 0.0, 1 / 3], np.float32)
    assert as_numbers(vector) == b"[0.5,-0.25,0.0,0.333333343]"


class Filter:
    """Runs a filter as the kernel would, to see what it answers."""

    def __init__(self, program: bytes) -> None:
        self._instructions = list(struct.iter_unpack("=HBBI", program))

    def answer(self, machine: int, number: int, *arguments: int) -> int:
        """What the filter returns for a call."""
        padded = [*arguments, *[0] * (6 - len(arguments))]
        data = struct.pack("=iIQ6Q", number, machine, 0, *padded)
        position, value = 0, 0
        while True:
            code, if_true, if_false, operand = self._instructions[position]
            position += 1
            if code == 0x20:
                (value,) = struct.unpack_from("=I", data, operand)
            elif code == 0x54:
                value &= operand
            elif code == 0x06:
                return int(operand)
            else:
                holds = {0x15: value == operand, 0x35: value >= operand, 0x45: value & operand}
                position += if_true if holds[code] else if_false


X86_64, AARCH64 = 0xC000003E, 0xC00000B7
ALLOW, NOT_PERMITTED, NO_SUCH_CALL, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
THREAD, SHARED_ANONYMOUS, PRIVATE_ANONYMOUS = 0x3D0F00, 0x21, 0x22


@pytest.mark.parametrize(
    ("name", "machine", "calls"),
    [
        (
            "x86_64",
            X86_64,
            {
                "read": 0,
                "mmap": 9,
                "socket": 41,
                "accept4": 288,
                "connect": 42,
                "clone": 56,
                "execve": 59,
                "clone3": 435,
                "fork": 57,
                "io_uring_setup": 425,
            },
        ),
        (
            "aarch64",
            AARCH64,
            {
                "read": 63,
                "mmap": 222,
                "socket": 198,
                "accept4": 242,
                "connect": 203,
                "clone": 220,
                "execve": 221,
                "clone3": 435,
                "io_uring_setup": 425,
            },
        ),
    ],
)
def test_the_filter_lets_pass_what_computing_needs(
    name: str, machine: int, calls: dict[str, int]
) -> None:
    program = filter_program(name, may_listen=False)
    assert program is not None
    asked = Filter(program)
    assert asked.answer(machine, calls["read"]) == ALLOW
    assert asked.answer(machine, calls["mmap"], 0, 0, 0, PRIVATE_ANONYMOUS) == ALLOW
    assert asked.answer(machine, calls["mmap"], 0, 0, 0, SHARED_ANONYMOUS) == NOT_PERMITTED
    assert asked.answer(machine, calls["clone"], THREAD) == ALLOW
    assert asked.answer(machine, calls["clone"], 17) == NOT_PERMITTED
    assert asked.answer(machine, calls["clone3"]) == NO_SUCH_CALL
    for refused in {"socket", "connect", "accept4", "execve", "fork", "io_uring_setup"} & set(
        calls
    ):
        assert asked.answer(machine, calls[refused], 1, 1) == NOT_PERMITTED
    assert asked.answer(machine ^ 1, calls["read"]) == KILL

    listening = filter_program(name, may_listen=True)
    assert listening is not None
    asked = Filter(listening)
    close_on_exec = 0x80000
    assert asked.answer(machine, calls["socket"], 1, 1 | close_on_exec) == ALLOW
    assert asked.answer(machine, calls["socket"], 1, 2) == NOT_PERMITTED
    assert asked.answer(machine, calls["socket"], 2, 1) == NOT_PERMITTED
    assert asked.answer(machine, calls["accept4"]) == ALLOW
    assert asked.answer(machine, calls["connect"]) == NOT_PERMITTED


def test_calls_of_the_other_table_are_refused() -> None:
    program = filter_program("x86_64", may_listen=False)
    assert program is not None
    assert Filter(program).answer(X86_64, 0x40000000) == NOT_PERMITTED


def test_there_is_no_filter_for_an_unknown_machine() -> None:
    assert filter_program("riscv64", may_listen=False) is None
