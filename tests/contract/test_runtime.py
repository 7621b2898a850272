"""Every runtime keeps the promises of the port."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from terafleet.agent.adapters.runtime.child import ChildRuntime, ChildSettings
from terafleet.agent.adapters.runtime.noop import NoopRuntime
from terafleet.agent.ports import (
    Runtime,
    RuntimeFailure,
    RuntimeLoaded,
    RuntimeModel,
    RuntimeResult,
    RuntimeUnavailable,
    RuntimeWork,
)
from terafleet.core.reasons import Failure
from terafleet.protocol.live_answers import Embeddings
from tests.contract.models_on_disk import minilm_model, stories_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOTS = 2
DEADLINE_S = 20.0


class Case:
    """A runtime that is up, a model that it can run, and work for it."""

    def __init__(self, runtime: Runtime, model: RuntimeModel) -> None:
        self.runtime = runtime
        self.model = model
        self.endings: list[str] = []

    def work(self, attempt_id: str, requests: int = 1) -> RuntimeWork:
        """Work that takes some milliseconds a request."""
        if self.model.runtime == "llama":
            endpoint, body = "/v1/completions", {"prompt": "Once", "max_tokens": 64}
        else:
            endpoint, body = "/v1/embeddings", {"input": "parked cars compute " * 60}
        line = msgspec.json.encode({"model": "m", **body}) + b"\n"
        return RuntimeWork(attempt_id, self.model.model_id, endpoint, line * requests)

    async def start(self) -> None:
        """Start the runtime and load the model."""
        await self.runtime.start(self.endings.append)
        assert isinstance(await self.runtime.load(self.model), RuntimeLoaded)


def child_case(model: RuntimeModel) -> Case:
    """A case in a process of its own."""
    settings = ChildSettings(models_folder=model.folder.parent, slots=SLOTS, niceness=0)
    return Case(ChildRuntime(model.runtime, settings), model)


def new_case(kind: str, sessions: pytest.TempPathFactory) -> Case:
    """A case of a kind, not started."""
    if kind == "noop":
        return Case(NoopRuntime(), RuntimeModel("none", "noop", Path("/nonexistent")))
    return child_case(minilm_model(sessions) if kind == "onnx" else stories_model(sessions))


async def started(kind: str, sessions: pytest.TempPathFactory) -> AsyncIterator[Case]:
    """A case of a kind with a model loaded, and its end."""
    one = new_case(kind, sessions)
    await one.start()
    yield one
    await one.runtime.kill()


ALL = ["noop", "onnx", "llama"]
CHILDREN = ["onnx", "llama"]


@pytest_asyncio.fixture(params=ALL, scope="module", loop_scope="module")
async def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Case]:
    """Each runtime in turn, for tests that leave it as they found it."""
    async for one in started(request.param, tmp_path_factory):
        yield one
        assert one.endings == []


@pytest_asyncio.fixture(params=CHILDREN, scope="module", loop_scope="module")
async def child(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Case]:
    """Each runtime that is a process, for tests that leave it as they found it."""
    async for one in started(request.param, tmp_path_factory):
        yield one
        assert one.endings == []


@pytest_asyncio.fixture(params=ALL, loop_scope="module")
async def doomed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Case]:
    """Each runtime in turn, for a test that ends it."""
    async for one in started(request.param, tmp_path_factory):
        yield one


@pytest_asyncio.fixture(params=CHILDREN, loop_scope="module")
async def doomed_child(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Case]:
    """Each runtime that is a process, for a test that ends it."""
    async for one in started(request.param, tmp_path_factory):
        yield one


def child_of(case: Case) -> ChildRuntime:
    """The runtime of a case as what it is."""
    assert isinstance(case.runtime, ChildRuntime)
    return case.runtime


def answers_of(outcome: RuntimeResult | RuntimeFailure) -> list[dict[str, Any]]:
    """The lines of an output."""
    assert isinstance(outcome, RuntimeResult), outcome
    assert outcome.payload.endswith(b"\n")
    return [msgspec.json.decode(line) for line in outcome.payload.splitlines()]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


def is_there(process_id: int) -> bool:
    """Whether a process of that number is known to the kernel, if only as a zombie."""
    return Path(f"/proc/{process_id}").exists()


def states_of(process_id: int) -> set[str]:
    """The states of a process's threads, as the kernel's letters."""
    letters = set()
    for task in Path(f"/proc/{process_id}/task").iterdir():
        letters.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return letters


async def test_an_attempt_has_one_answer_for_each_request(case: Case) -> None:
    outcome = await case.runtime.run(case.work("a", requests=3))
    assert [answer["status_code"] for answer in answers_of(outcome)] == [200, 200, 200]
    assert isinstance(outcome, RuntimeResult)
    assert outcome.attempt_id == "a"
    assert outcome.prompt_tokens > 0


async def test_a_runtime_without_a_model_answers_with_an_embedding() -> None:
    case = Case(NoopRuntime(), RuntimeModel("none", "noop", Path("/nonexistent")))
    await case.start()
    (answer,) = answers_of(await case.runtime.run(case.work("a")))
    told = msgspec.convert(answer["body"], Embeddings, strict=True)
    assert [(one.index, one.embedding) for one in told.data] == [(0, [1.0])]
    assert told.usage.total_tokens == 1


async def test_the_last_line_needs_no_end(case: Case) -> None:
    work = case.work("a", requests=2)
    unended = msgspec.structs.replace(work, payload=work.payload.removesuffix(b"\n"))
    assert len(answers_of(await case.runtime.run(unended))) == 2


async def test_a_loaded_model_is_loaded_at_once(case: Case) -> None:
    first, second = await asyncio.gather(
        case.runtime.load(case.model), case.runtime.load(case.model)
    )
    assert isinstance(first, RuntimeLoaded)
    assert first == second


async def test_a_model_that_is_not_loaded_runs_nothing(case: Case) -> None:
    work = msgspec.structs.replace(case.work("a"), model_id="another")
    outcome = await case.runtime.run(work)
    assert isinstance(outcome, RuntimeFailure)
    assert (outcome.attempt_id, outcome.reason) == ("a", Failure.MODEL_UNAVAILABLE)


async def test_several_attempts_run_at_once(case: Case) -> None:
    works = [case.work("a", requests=2), case.work("b", requests=5)]
    outcomes = await asyncio.gather(*map(case.runtime.run, works))
    assert [outcome.attempt_id for outcome in outcomes] == ["a", "b"]
    assert [len(answers_of(outcome)) for outcome in outcomes] == [2, 5]


async def test_stopping_what_does_not_run_changes_nothing(case: Case) -> None:
    await case.runtime.stop("unknown")
    assert len(answers_of(await case.runtime.run(case.work("a")))) == 1


async def test_suspending_and_resuming_never_raise(case: Case) -> None:
    case.runtime.suspend()
    case.runtime.suspend()
    case.runtime.resume()
    case.runtime.resume()
    assert len(answers_of(await case.runtime.run(case.work("a")))) == 1


async def test_killing_twice_is_one_end(doomed: Case) -> None:
    await doomed.runtime.kill()
    await doomed.runtime.kill()
    doomed.runtime.suspend()
    doomed.runtime.resume()
    outcome = await doomed.runtime.run(doomed.work("a"))
    assert isinstance(outcome, RuntimeFailure)
    assert doomed.endings == []


async def test_a_killed_runtime_starts_again(doomed: Case) -> None:
    await doomed.runtime.kill()
    await doomed.start()
    assert len(answers_of(await doomed.runtime.run(doomed.work("a")))) == 1


async def test_an_attempt_tells_what_it_used(child: Case) -> None:
    before_ms = child.runtime.cpu_ms()
    outcome = await child.runtime.run(child.work("a", requests=20))
    assert isinstance(outcome, RuntimeResult)
    # The kernel counts in ticks of ten milliseconds.
    assert 0 < outcome.cpu_ms <= child.runtime.cpu_ms() - before_ms + 20


async def test_a_stopped_attempt_fails_at_once_and_leaves_its_slot(child: Case) -> None:
    long = asyncio.create_task(child.runtime.run(child.work("long", requests=300)))
    other = asyncio.create_task(child.runtime.run(child.work("other")))
    await other
    await child.runtime.stop("long")
    outcome = await long
    assert outcome == RuntimeFailure("long", Failure.STOPPED)
    both = await asyncio.gather(
        child.runtime.run(child.work("c")), child.runtime.run(child.work("d"))
    )
    assert [len(answers_of(one)) for one in both] == [1, 1]


async def test_an_attempt_that_nobody_waits_for_is_stopped(child: Case) -> None:
    lost = asyncio.create_task(child.runtime.run(child.work("lost", requests=300)))
    await asyncio.sleep(0)
    lost.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lost
    works = [child.work("c", requests=3), child.work("d", requests=3)]
    outcomes = await asyncio.gather(*map(child.runtime.run, works))
    assert [len(answers_of(outcome)) for outcome in outcomes] == [3, 3]


async def test_more_attempts_than_slots_are_refused(doomed_child: Case) -> None:
    running = [
        asyncio.create_task(doomed_child.runtime.run(doomed_child.work(name, requests=300)))
        for name in "ab"
    ]
    await asyncio.sleep(0)
    outcome = await doomed_child.runtime.run(doomed_child.work("c"))
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.reason == Failure.RUNTIME_REFUSED
    await doomed_child.runtime.kill()
    assert {(await one) for one in running}


async def test_a_suspended_runtime_uses_no_processor(child: Case) -> None:
    running = asyncio.create_task(child.runtime.run(child.work("a", requests=100)))
    began_ms = child.runtime.cpu_ms()
    await until(lambda: child.runtime.cpu_ms() > began_ms)
    child.runtime.suspend()
    try:
        await until(lambda: states_of(child_of(child).process_id) == {"T"})
        suspended_ms = child.runtime.cpu_ms()
        await asyncio.sleep(0.2)
        assert child.runtime.cpu_ms() == suspended_ms
        assert not running.done()
    finally:
        # The tests behind this one use the same program.
        child.runtime.resume()
    assert len(answers_of(await running)) == 100


async def test_a_suspended_runtime_can_be_stopped_and_killed(doomed_child: Case) -> None:
    running = asyncio.create_task(doomed_child.runtime.run(doomed_child.work("a", requests=300)))
    await asyncio.sleep(0)
    doomed_child.runtime.suspend()
    await doomed_child.runtime.stop("a")
    assert await running == RuntimeFailure("a", Failure.STOPPED)
    process_id = child_of(doomed_child).process_id
    await doomed_child.runtime.kill()
    assert not is_there(process_id)


async def test_killing_ends_attempts_and_gives_memory_back(doomed_child: Case) -> None:
    running = asyncio.create_task(doomed_child.runtime.run(doomed_child.work("a", requests=300)))
    await asyncio.sleep(0)
    process_id = child_of(doomed_child).process_id
    await doomed_child.runtime.kill()
    outcome = await running
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.reason == Failure.STOPPED
    assert not is_there(process_id)
    assert doomed_child.runtime.cpu_ms() > 0
    assert doomed_child.endings == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_a_crash_fails_what_ran_and_nothing_else(
    doomed_child: Case, number: signal.Signals
) -> None:
    running = asyncio.create_task(doomed_child.runtime.run(doomed_child.work("a", requests=300)))
    await asyncio.sleep(0)
    os.kill(child_of(doomed_child).process_id, number)
    outcome = await running
    assert isinstance(outcome, RuntimeFailure)
    assert (outcome.attempt_id, outcome.reason) == ("a", Failure.RUNTIME_CRASHED)
    assert outcome.detail == f"signal {int(number)}"
    await until(lambda: len(doomed_child.endings) > 0)
    later = await doomed_child.runtime.run(doomed_child.work("b"))
    assert isinstance(later, RuntimeFailure)
    assert doomed_child.endings == [Failure.RUNTIME_CRASHED]
    await doomed_child.start()
    assert len(answers_of(await doomed_child.runtime.run(doomed_child.work("c")))) == 1


async def test_an_endpoint_that_the_model_does_not_serve_is_refused(child: Case) -> None:
    work = msgspec.structs.replace(child.work("a"), endpoint="/v1/moderations")
    outcome = await child.runtime.run(work)
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.reason == Failure.RUNTIME_REFUSED


async def test_a_damaged_model_is_not_loaded_and_harms_nothing(
    child: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "models" / f"damaged-{child.model.runtime}"
    folder.mkdir(exist_ok=True)
    for file in child.model.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damaged = msgspec.structs.replace(child.model, model_id="damaged", folder=folder)
    outcome = await child.runtime.load(damaged)
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.reason == Failure.MODEL_UNAVAILABLE
    assert len(answers_of(await child.runtime.run(child.work("a")))) == 1


async def test_a_model_of_another_kind_is_refused(child: Case) -> None:
    other = msgspec.structs.replace(child.model, runtime="vision")
    outcome = await child.runtime.load(other)
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.reason == Failure.RUNTIME_REFUSED


async def test_a_model_that_needs_more_memory_than_lent_is_not_loaded(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = minilm_model(tmp_path_factory)
    settings = ChildSettings(models_folder=model.folder.parent, memory_bytes=160 * 1024**2)
    runtime = ChildRuntime("onnx", settings)
    await runtime.start(lambda _reason: None)
    outcome = await runtime.load(model)
    await runtime.kill()
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.reason == Failure.OUT_OF_MEMORY


@pytest.mark.parametrize("words", ["b'\\xff' * 20", "b'\\x03\\0\\0\\0abc'"])
async def test_a_program_that_speaks_otherwise_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    code = f"import sys, time; sys.stdout.buffer.write({words}); sys.stdout.flush(); time.sleep(60)"
    runtime = ChildRuntime("onnx", ChildSettings(models_folder=tmp_path))
    monkeypatch.setattr(runtime, "_command", lambda: [sys.executable, "-c", code])
    endings: list[str] = []
    with pytest.raises(RuntimeUnavailable) as raised:
        await runtime.start(endings.append)
    assert (raised.value.reason, raised.value.detail) == (Failure.RUNTIME_CRASHED, "signal 9")
    assert endings == []


async def test_a_kind_without_its_library_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of the library's name that can't be imported stands in for one that is missing."""
    source = tmp_path / "source"
    (source / "xllamacpp").mkdir(parents=True)
    (source / "xllamacpp" / "__init__.py").write_text("raise ImportError('no such library')")
    folders = os.pathsep.join([str(source), str(Path(__file__).parents[2] / "src")])
    monkeypatch.setattr("terafleet.agent.adapters.runtime.child._SOURCE_FOLDER", folders)
    runtime = ChildRuntime("llama", ChildSettings(models_folder=tmp_path))
    with pytest.raises(RuntimeUnavailable, match="no such library") as raised:
        await runtime.start(lambda _reason: None)
    assert raised.value.reason == Failure.RUNTIME_REFUSED
