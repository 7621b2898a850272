"""The walls around the runtime hold against a program that tries to get out.

Every try is made twice, without walls and behind them, so that a wall that was never touched
proves nothing.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from terafleet.agent.adapters.runtime.child import ChildRuntime, ChildSettings
from terafleet.agent.adapters.sandbox.bubblewrap import View, Wrapping, find_wrapping
from terafleet.agent.adapters.sandbox.own_user import GROUP_ID, free_user_id
from terafleet.agent.adapters.sandbox.tries import namespaces
from terafleet.agent.ports import RuntimeUnavailable, SandboxReport
from terafleet.core.isolation import IsolationLevel, isolation_level
from terafleet.core.reasons import Failure
from tests.contract.models_on_disk import minilm_model, stories_model

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"
DEADLINE_S = 30.0
ALL_HOLD = SandboxReport(**dict.fromkeys(SandboxReport.__struct_fields__, True))
MEMORY_BYTES = 256 * 1024**2
OF_WRAPPING = {
    "sees_no_other_process",
    "sees_only_its_files",
    "has_own_identity",
    "has_limited_threads",
}
"""What a process can't give itself; the last is the agent's where it is root."""
OF_AGENT = {"has_idle_priority"}
"""What the agent does to a process and sees itself."""
bubblewrap = pytest.mark.debian_package("bubblewrap", program="bwrap")
as_root = pytest.mark.skipif(
    os.geteuid() != 0,
    reason="only root can give a program a user of its own; all other walls are tried for anybody",
)


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script of this folder, in a process and a session of its own."""
    return run_command([sys.executable, "-P", str(HERE / name), *arguments], **environment)


def run_command(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in a session of its own."""
    return subprocess.run(
        command,
        env={"PYTHONPATH": str(SOURCES), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=60,
        start_new_session=True,
        check=False,
    )


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_alive(process_id: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@contextlib.contextmanager
def neighbours(folder: Path) -> Iterator[dict[str, Any]]:
    """What a prisoner would like to reach: sockets, a secret, a process."""
    (folder / "models").mkdir()
    (folder / "models" / "weights").write_text("weights")
    (folder / "secret").write_text("the key of the car")
    (folder / "models" / "link").symlink_to("../secret")
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(folder / "local.sock"))
        local.listen()
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0terafleet-test-{os.getpid()}")
        abstract.listen()
        neighbour = stack.enter_context(subprocess.Popen(["/bin/sleep", "60"]))
        stack.callback(neighbour.kill)
        tcp6 = 0
        with contextlib.suppress(OSError):
            server = socket.create_server(("::1", 0), family=socket.AF_INET6)
            tcp6 = stack.enter_context(server).getsockname()[1]
        yield {
            "models": str(folder / "models"),
            "folder": str(folder),
            "tcp": tcp.getsockname()[1],
            "tcp6": tcp6,
            "neighbour": neighbour.pid,
            "udp": udp.getsockname()[1],
            "local": str(folder / "local.sock"),
            "abstract": f"terafleet-test-{os.getpid()}",
            "agent": os.getpid(),
            "memory_bytes": MEMORY_BYTES,
        }


def wrapped_prisoner(mode: str, targets: dict[str, Any]) -> list[str]:
    """The command line of a prisoner that the agent would wrap as it wraps a runtime."""
    found = find_wrapping(View(targets["models"], (str(SOURCES), str(HERE))))
    assert isinstance(found, Wrapping), found
    wrapped = {
        "shown": found.shown,
        "outside": namespaces(),
        "user_id": free_user_id() if found.has_own_identity else 0,
        "group_id": GROUP_ID,
    }
    words = json.dumps({**targets, "wrapped": wrapped})
    return found.command([sys.executable, "-P", str(HERE / "prisoner.py"), mode, words])


@pytest.mark.parametrize("mode", ["kept", "listening"])
def test_nothing_that_works_outside_works_behind_the_walls(tmp_path: Path, mode: str) -> None:
    with neighbours(tmp_path) as targets:
        words = json.dumps(targets)
        free = run_script("prisoner.py", "free", words)
        kept = run_script("prisoner.py", mode, words)
    assert free.returncode == 0, free.stderr
    assert kept.returncode == 0, kept.stderr
    without, behind = json.loads(free.stdout), json.loads(kept.stdout)
    assert [name for name, worked in without["tries"].items() if not worked] == []
    # Root's threads are bounded from outside only.
    assert {name for name, worked in behind["tries"].items() if worked} <= {"threads without end"}
    missing = {name for name, holds in behind["report"].items() if not holds}
    assert missing <= OF_WRAPPING | OF_AGENT
    assert ("has_limited_threads" in missing) == behind["tries"]["threads without end"]
    assert all(behind["needs"].values()), behind["needs"]


@bubblewrap
@as_root
@pytest.mark.parametrize("mode", ["kept", "listening"])
def test_nothing_works_in_a_wrapper_and_every_wall_holds(tmp_path: Path, mode: str) -> None:
    with neighbours(tmp_path) as targets:
        kept = run_command(wrapped_prisoner(mode, targets))
    assert kept.returncode == 0, kept.stderr
    behind = json.loads(kept.stdout)
    assert [name for name, worked in behind["tries"].items() if worked] == []
    assert {name for name, holds in behind["report"].items() if not holds} == OF_AGENT
    assert all(behind["needs"].values()), behind["needs"]


@bubblewrap
def test_the_walls_hold_for_an_agent_that_is_not_root(tmp_path: Path) -> None:
    """A user namespace makes an agent without privileges of this process."""
    with neighbours(tmp_path) as targets:
        words = json.dumps({**targets, "sources": str(SOURCES)})
        script = [sys.executable, "-P", str(HERE / "ordinary_agent.py"), words]
        mapped = ("--unshare-user", "--uid", "1000", "--gid", "1000", "--dev-bind", "/", "/")
        kept = run_command(["bwrap", *mapped, "--unshare-pid", "--proc", "/proc", "--", *script])
    assert kept.returncode == 0, kept.stderr
    behind = json.loads(kept.stdout)
    worked = {name for name, worked in behind["tries"].items() if worked}
    missing = {name for name, holds in behind["report"].items() if not holds} - OF_AGENT
    # The kernel bounds no threads of root's, whatever a namespace calls it.
    assert worked <= {"threads without end"}
    assert {"has_own_identity"} <= missing <= {"has_own_identity", "has_limited_threads"}


@bubblewrap
def test_a_crash_leaves_no_core(tmp_path: Path) -> None:
    with neighbours(tmp_path) as targets:
        targets["crashes"] = True
        script = [sys.executable, "-P", str(HERE / "prisoner.py")]
        free = [*script, "free", json.dumps(targets)]
        kept = [*script, "kept", json.dumps(targets)]
        wrapped = wrapped_prisoner("kept", targets)
        dumped = [is_core_dumped(command, tmp_path) for command in (free, kept, wrapped)]
    assert dumped[1:] == [False, False]
    if not dumped[0]:
        pytest.skip(
            "the kernel keeps no core of any program here, so that none is kept of this one "
            "would show nothing (its limit of 0 is tried from inside)"
        )


def is_core_dumped(command: list[str], folder: Path) -> bool:
    """Whether the kernel says so, or a file has come, when a program crashes in a folder."""
    before = set(folder.iterdir())
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(SOURCES)},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30)),
    )
    _process_id, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (-signal.SIGABRT, 128 + signal.SIGABRT)
    return os.WCOREDUMP(status) or set(folder.iterdir()) != before


@bubblewrap
@as_root
async def test_a_runtime_reports_what_holds(tmp_path: Path) -> None:
    for kind in ("onnx", "llama"):
        runtime = ChildRuntime(kind, ChildSettings(models_folder=tmp_path))
        report = await runtime.start(lambda _reason: None)
        await runtime.kill()
        assert report == ALL_HOLD
        assert isolation_level(report) is IsolationLevel.CONFINED


async def test_a_runtime_that_is_not_wrapped_claims_less(tmp_path: Path) -> None:
    runtime = ChildRuntime("onnx", ChildSettings(models_folder=tmp_path, may_wrap=False))
    report = await runtime.start(lambda _reason: None)
    await runtime.kill()
    missing = {name for name in report.__struct_fields__ if not getattr(report, name)}
    assert OF_WRAPPING - {"has_limited_threads"} <= missing <= OF_WRAPPING
    assert isolation_level(report) is IsolationLevel.PROCESS


def test_without_a_wall_against_the_network_nothing_starts() -> None:
    outcome = run_script("wall_less.py", ORT_DISABLE_TELEMETRY="1")
    assert outcome.returncode == 0, outcome.stderr
    assert "sandbox_unavailable" in outcome.stdout
    assert "no wall keeps the network away" in outcome.stdout


def test_the_runtime_insists_that_telemetry_is_off() -> None:
    outcome = run_script("wall_less.py")
    assert outcome.returncode != 0
    assert "ORT_DISABLE_TELEMETRY" in outcome.stderr
    assert outcome.stdout == ""


async def test_a_program_that_can_not_be_started_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    runtime = ChildRuntime("onnx", ChildSettings(models_folder=tmp_path))
    with pytest.raises(RuntimeUnavailable) as raised:
        await runtime.start(lambda _reason: None)
    assert raised.value.reason == Failure.RUNTIME_REFUSED


@pytest.mark.parametrize("is_suspended", [False, True])
@pytest.mark.parametrize("kind", ["onnx", "llama"])
def test_the_runtime_dies_with_the_agent(
    tmp_path_factory: pytest.TempPathFactory, kind: str, is_suspended: bool
) -> None:
    model = (minilm_model if kind == "onnx" else stories_model)(tmp_path_factory)
    agent = subprocess.Popen(
        [
            sys.executable,
            "-P",
            str(HERE / "lonely_agent.py"),
            kind,
            str(model.folder),
            "suspend" if is_suspended else "run",
        ],
        env={"PYTHONPATH": str(SOURCES)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    with agent.stdout as output:
        process_id = int(output.readline())
        assert is_alive(process_id)
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        wait_until(lambda: not is_alive(process_id))


def test_the_runtime_never_makes_a_socket(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kernel kills both programs at their first socket; only the warned one must survive."""
    folder = str(minilm_model(tmp_path_factory).folder)
    home = str(tmp_path_factory.mktemp("home"))
    command = [sys.executable, "-P", str(HERE / "socket_fuse.py"), folder]
    common = {"PYTHONPATH": str(SOURCES), "HOME": home}

    def program(**environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env={**common, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with program() as chatty, program(ORT_DISABLE_TELEMETRY="1") as silent:
        assert chatty.stdout is not None
        assert silent.stdout is not None
        assert chatty.stdout.readline() == silent.stdout.readline() == "384\n"
        # A library without telemetry would live on, and then this test would prove nothing.
        wait_until(lambda: chatty.poll() is not None)
        time.sleep(2)
        silent.communicate(timeout=DEADLINE_S)
        assert chatty.returncode == -signal.SIGSYS
        assert silent.returncode == 0


async def test_what_libraries_print_is_no_frame(tmp_path: Path) -> None:
    """A library that writes to the standard output disturbs nothing."""
    package = tmp_path / "xllamacpp"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os\nos.write(1, b'hello from the library')\nprint('and again', flush=True)\n"
        "CommonParams = object\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); "
        "from terafleet.agent.runtime_host.__main__ import main; main()"
    )
    settings = {
        "slots": 1,
        "threads": 1,
        "memory_bytes": MEMORY_BYTES * 4,
        "niceness": 0,
        "models_folder": str(tmp_path),
        "parent_id": os.getpid(),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        code,
        "llama",
        json.dumps(settings),
        str(tmp_path),
        env={"PYTHONPATH": str(SOURCES), "ORT_DISABLE_TELEMETRY": "1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(b"")
    length = int.from_bytes(output[:4], "little")
    assert len(output) == 4 + length, output
    assert b"hello from the library" in errors
    assert b"and again" in errors
    assert process.returncode == 0
