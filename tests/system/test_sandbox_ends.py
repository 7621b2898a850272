"""A runtime is stopped and ended at once, wrapped or not, and leaves nothing behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from terafleet.agent.adapters.runtime.child import ChildRuntime, ChildSettings
from terafleet.agent.adapters.runtime.ending import release_memory
from terafleet.agent.adapters.runtime.worker import worker_behind
from terafleet.agent.adapters.sandbox import cgroups
from terafleet.agent.ports import RuntimeFailure, RuntimeLoaded, RuntimeModel, SandboxReport
from terafleet.agent.runtime_host.frames import length_prefix
from terafleet.agent.runtime_host.messages import ENCODER, Ready
from terafleet.core.reasons import Failure
from tests.contract.models_on_disk import stories_model

bubblewrap = pytest.mark.debian_package("bubblewrap", program="bwrap")
WRAPPED = pytest.param(True, marks=bubblewrap, id="wrapped")
BOTH = pytest.mark.parametrize("may_wrap", [pytest.param(False, id="bare"), WRAPPED])
HARD_BOUND_S = 2.0
"""What the owner is promised: nothing is left running behind a kill."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - it is looked at only.

READY = ENCODER.encode(Ready(SandboxReport(True, True, True, True, True), ()))
STUBBORN = f"""
import signal, sys
for number in set(signal.valid_signals()) - {{signal.SIGKILL, signal.SIGSTOP}}:
    signal.signal(number, signal.SIG_IGN)
sys.stdout.buffer.write({length_prefix(READY) + READY!r})
sys.stdout.flush()
while True:
    pass
"""
"""A program that a model has taken over: it claims all, computes for ever and heeds no signal."""


def states_of(process_id: int) -> set[str]:
    """The states of a process's threads, as the kernel's letters."""
    letters = set()
    for task in Path(f"/proc/{process_id}/task").iterdir():
        letters.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return letters


def parent_of(process_id: int) -> int:
    """The process that started another."""
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])


def names_in(folder: Path) -> set[str]:
    """What lies in a folder."""
    return set(os.listdir(folder))


def facts_of(process_id: int) -> tuple[list[str], bytes]:
    """A process's numbers in the namespaces that it is in, outermost first; its command line."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    (numbers,) = [line.split()[1:] for line in lines if line.startswith("NSpid:")]
    return numbers, Path(f"/proc/{process_id}/cmdline").read_bytes()


def is_alive(process_id: int) -> bool:
    """Whether a process is there and no zombie."""
    with contextlib.suppress(OSError):
        return bool(states_of(process_id) - {"Z", "X"})
    return False


def own_groups() -> list[Path]:
    """The control groups that this process's runtimes have on this computer."""
    return list(Path("/sys/fs/cgroup").glob(f"**/{cgroups.PREFIX}{os.getpid()}-*"))


async def until(is_so: Callable[[], bool], bound_s: float = 20.0) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + bound_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def stubborn(
    folder: Path, may_wrap: bool, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[ChildRuntime, list[str]]]:
    """A runtime whose program computes for ever, and where its end is told."""
    runtime = ChildRuntime("onnx", ChildSettings(folder, niceness=0, may_wrap=may_wrap))
    monkeypatch.setattr(runtime, "_program", lambda _settings: [sys.executable, "-c", STUBBORN])
    endings: list[str] = []
    await runtime.start(endings.append)
    yield runtime, endings
    await runtime.kill()


@BOTH
async def test_a_program_that_heeds_no_signal_is_stopped_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_wrap: bool
) -> None:
    async with stubborn(tmp_path, may_wrap, monkeypatch) as (runtime, endings):
        process_id = runtime.process_id
        os.kill(process_id, signal.SIGTERM)
        began_ms = runtime.cpu_ms()
        await until(lambda: runtime.cpu_ms() > began_ms)
        runtime.suspend()
        await until(lambda: states_of(process_id) == {"T"}, HARD_BOUND_S)
        stopped_ms = runtime.cpu_ms()
        await asyncio.sleep(0.1)
        assert runtime.cpu_ms() == stopped_ms
        killed_s = time.monotonic()
        await runtime.kill()
        assert time.monotonic() - killed_s < HARD_BOUND_S
        assert not is_alive(process_id)
        assert runtime.cpu_ms() >= stopped_ms > 0
        assert endings == []


@bubblewrap
async def test_the_process_inside_is_the_one_that_is_told(tmp_path: Path) -> None:
    runtime = ChildRuntime("onnx", ChildSettings(tmp_path))
    await runtime.start(lambda _reason: None)
    numbers, command = facts_of(runtime.process_id)
    await runtime.kill()
    assert numbers == [str(runtime.process_id), "2"]
    assert command.startswith(sys.executable.encode())
    assert b"terafleet.agent.runtime_host" in command


@bubblewrap
async def test_the_end_of_the_wrapper_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stubborn(tmp_path, True, monkeypatch) as (runtime, endings):
        worker = runtime.process_id
        wrapper = parent_of(parent_of(worker))
        assert worker_behind(wrapper) == worker
        os.kill(wrapper, signal.SIGKILL)
        await until(lambda: endings == [Failure.RUNTIME_CRASHED], HARD_BOUND_S)
        assert not is_alive(worker)


@bubblewrap
async def test_the_end_of_the_first_process_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stubborn(tmp_path, True, monkeypatch) as (runtime, endings):
        worker = runtime.process_id
        os.kill(parent_of(worker), signal.SIGKILL)
        await until(lambda: endings == [Failure.RUNTIME_CRASHED], HARD_BOUND_S)
        assert not is_alive(worker)


@BOTH
async def test_nothing_is_left_of_runtimes_that_were_killed(tmp_path: Path, may_wrap: bool) -> None:
    before = names_in(SHARED_MEMORY)
    for kind in ("onnx", "llama"):
        runtime = ChildRuntime(kind, ChildSettings(tmp_path, may_wrap=may_wrap))
        await runtime.start(lambda _reason: None)
        assert bool(own_groups()) == any("cgroup" in one for one in runtime.mechanisms)
        await runtime.kill()
        await until(lambda: own_groups() == [])
    assert names_in(SHARED_MEMORY) <= before
    assert names_in(tmp_path) == set()


async def test_a_crash_leaves_no_group(tmp_path: Path) -> None:
    runtime = ChildRuntime("onnx", ChildSettings(tmp_path))
    endings: list[str] = []
    await runtime.start(endings.append)
    os.kill(runtime.process_id, signal.SIGKILL)
    await until(lambda: endings == [Failure.RUNTIME_CRASHED])
    await until(lambda: own_groups() == [])


def lies() -> dict[str, bytes]:
    """Headers of GGUF that promise what the file does not have."""
    magic, version, huge = b"GGUF", (3).to_bytes(4, "little"), (2**63 - 1).to_bytes(8, "little")
    none, one = bytes(8), (1).to_bytes(8, "little")
    text, array = (8).to_bytes(4, "little"), (9).to_bytes(4, "little")
    name = (4).to_bytes(8, "little") + b"name"
    return {
        "tensors": magic + version + huge + none,
        "facts": magic + version + none + huge,
        "a name": magic + version + none + one + huge + b"name",
        "a text": magic + version + none + one + name + text + huge,
        "an array": magic + version + none + one + name + array + text + huge,
        "a nest": magic + version + none + one + name + (array + array) * 1000,
    }


@BOTH
async def test_a_model_that_lies_in_its_header_harms_nothing(
    tmp_path_factory: pytest.TempPathFactory, may_wrap: bool
) -> None:
    model = stories_model(tmp_path_factory)
    folder = model.folder.parent
    runtime = ChildRuntime("llama", ChildSettings(folder, niceness=0, may_wrap=may_wrap))
    endings: list[str] = []
    await runtime.start(endings.append)
    whole = (model.folder / "model.gguf").read_bytes()
    for number, (name, header) in enumerate(lies().items()):
        # What follows the header is a real model, so that there is something to be read.
        liar = folder / f"liar-{number}"
        liar.mkdir(exist_ok=True)
        (liar / "model.gguf").write_bytes(header + whole[len(header) :])
        outcome = await runtime.load(RuntimeModel(f"liar-{number}", "llama", liar))
        assert isinstance(outcome, RuntimeFailure), name
        assert outcome.reason in (Failure.MODEL_UNAVAILABLE, Failure.OUT_OF_MEMORY), (name, outcome)
    assert isinstance(await runtime.load(model), RuntimeLoaded)
    assert endings == []
    await runtime.kill()


@bubblewrap
async def test_a_model_that_comes_while_the_runtime_is_up_can_be_read(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """It comes as from a download: readable for its owner only, by a rename in the same folder."""
    model = stories_model(tmp_path_factory)
    folder = tmp_path_factory.mktemp("late")
    runtime = ChildRuntime("llama", ChildSettings(folder, niceness=0))
    await runtime.start(lambda _reason: None)
    growing = folder / "stories.part"
    growing.mkdir(mode=0o700)
    (growing / "model.gguf").write_bytes((model.folder / "model.gguf").read_bytes())
    (growing / "model.gguf").chmod(0o600)
    growing.rename(folder / "stories")
    late = RuntimeModel("late", "llama", folder / "stories", {"context_tokens": 512})
    outcome = await runtime.load(late)
    await runtime.kill()
    assert isinstance(outcome, RuntimeLoaded)
    others = (folder / "stories" / "model.gguf").stat().st_mode & 0o007
    assert others == 0


def test_memory_can_be_taken_back_from_what_was_killed() -> None:
    code = "import time; room = bytearray(50 << 20); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        descriptor = os.pidfd_open(process.pid)
        process.kill()
        release_memory(descriptor)
        assert Path(f"/proc/{process.pid}/statm").read_text().split()[1] == "0"
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(descriptor)
