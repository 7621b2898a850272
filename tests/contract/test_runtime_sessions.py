"""Every runtime streams sessions as the port promises."""

import asyncio
import os
import random
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
    RuntimeWork,
    SandboxReport,
    SessionEnd,
    SessionPiece,
    SessionRefused,
    SessionWork,
)
from terafleet.agent.runtime_host.frames import length_prefix
from terafleet.agent.runtime_host.messages import (
    ENCODER,
    AnyFromRuntime,
    Done,
    Ended,
    Piece,
    Ready,
    Refused,
)
from terafleet.core.reasons import Failure
from tests.contract.models_on_disk import minilm_model, stories_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
STORY: dict[str, Any] = {
    "model": "m",
    "prompt": "Once upon a time",
    "temperature": 0,
    "max_tokens": 30,
}
LONG = {**STORY, "max_tokens": 400, "logit_bias": {"1": -100, "2": -100}}
# Several texts one behind the other, so that it lasts however late the test gets its turn.
LASTING = {**LONG, "n": 12}
LASTING_TOKENS = 12 * 400
SLOTS = 2
DEADLINE_S = 20.0

Outcome = SessionEnd | SessionRefused | RuntimeFailure


class Listener:
    """Takes the pieces of a session."""

    def __init__(self) -> None:
        self.pieces: list[SessionPiece] = []
        self.has_begun = asyncio.Event()

    def __call__(self, piece: SessionPiece) -> None:
        """A piece comes."""
        self.pieces.append(piece)
        self.has_begun.set()

    def text(self, index: int = 0) -> str:
        """One text of the answer."""
        return "".join(piece.text for piece in self.pieces if piece.index == index)

    def tokens(self, cut: int | None = None) -> tuple[int, ...]:
        """The tokens that are told with the first pieces, or all of them."""
        return tuple(token for piece in self.pieces[:cut] for token in piece.token_ids)


class Case:
    """A runtime that is up, with a model."""

    def __init__(self, runtime: Runtime, model: RuntimeModel) -> None:
        self.runtime = runtime
        self.model = model
        self.endings: list[str] = []

    async def start(self) -> None:
        """Start the runtime and load the model."""
        await self.runtime.start(self.endings.append)
        assert isinstance(await self.runtime.load(self.model), RuntimeLoaded)

    def work(
        self, body: dict[str, Any], name: str = "s", endpoint: str = COMPLETIONS
    ) -> SessionWork:
        """A session's work."""
        return SessionWork(name, self.model.model_id, endpoint, msgspec.json.encode(body))

    async def answer(
        self, body: dict[str, Any], delivered: tuple[int, ...] = (), name: str = "s"
    ) -> tuple[Listener, Outcome]:
        """A whole answer."""
        listener = Listener()
        work = msgspec.structs.replace(self.work(body, name), delivered=delivered)
        return listener, await self.runtime.open(work, listener)

    async def begin(
        self, body: dict[str, Any], name: str = "s"
    ) -> tuple[Listener, "asyncio.Task[Outcome]"]:
        """An answer that has begun."""
        listener = Listener()
        answering = asyncio.create_task(self.runtime.open(self.work(body, name), listener))
        await listener.has_begun.wait()
        return listener, answering


def new_case(kind: str, sessions: pytest.TempPathFactory) -> Case:
    """A case of a kind, not started."""
    if kind == "noop":
        return Case(NoopRuntime(), RuntimeModel("none", "noop", Path("/nonexistent")))
    model = stories_model(sessions)
    settings = ChildSettings(models_folder=model.folder.parent, slots=SLOTS, niceness=0)
    return Case(ChildRuntime(model.runtime, settings), model)


async def started(kind: str, sessions: pytest.TempPathFactory) -> AsyncIterator[Case]:
    """A case of a kind with a model loaded, and its end."""
    one = new_case(kind, sessions)
    await one.start()
    yield one
    await one.runtime.kill()


@pytest_asyncio.fixture(params=["noop", "llama"], scope="module", loop_scope="module")
async def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Case]:
    """Each runtime in turn, for tests that leave it as they found it."""
    async for one in started(request.param, tmp_path_factory):
        yield one
        assert one.endings == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def child(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Case]:
    """The runtime that is a process, for tests that leave it as they found it."""
    async for one in started("llama", tmp_path_factory):
        yield one
        assert one.endings == []


@pytest_asyncio.fixture(params=["noop", "llama"], loop_scope="module")
async def doomed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Case]:
    """Each runtime in turn, for a test that ends it."""
    async for one in started(request.param, tmp_path_factory):
        yield one


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


async def test_an_answer_comes_in_pieces_and_ends_once(case: Case) -> None:
    listener, end = await case.answer(STORY)
    assert isinstance(end, SessionEnd)
    assert (end.session_id, end.completion_tokens, len(listener.tokens())) == ("s", 30, 30)
    assert end.prompt_tokens > 0
    assert all(len(piece.token_ids) <= 1 for piece in listener.pieces)
    reasons = [piece.finish_reason for piece in listener.pieces]
    assert (set(reasons[:-1]), reasons[-1]) == ({""}, "length")


@pytest.mark.parametrize("cut", [0, 1, 7, 29, 30])
async def test_an_answer_goes_on_behind_a_cut(case: Case, cut: int) -> None:
    whole, end = await case.answer(STORY)
    delivered = whole.tokens(cut)
    rest, rest_end = await case.answer(STORY, delivered)
    assert delivered + rest.tokens() == whole.tokens()
    begin = "".join(piece.text for piece in whole.pieces[:cut])
    assert begin + rest.text() == whole.text()
    assert isinstance(end, SessionEnd)
    assert isinstance(rest_end, SessionEnd)
    assert rest_end.completion_tokens == end.completion_tokens
    assert rest_end.prompt_tokens == end.prompt_tokens


async def test_sessions_at_once_do_not_mix(case: Case) -> None:
    chance = random.Random(5)
    bodies = [{**STORY, "max_tokens": chance.randint(5, 40)} for _ in range(12)]
    expected = {body["max_tokens"]: (await case.answer(body))[0].text() for body in bodies}
    slots = asyncio.Semaphore(SLOTS)

    async def one(number: int, body: dict[str, Any]) -> None:
        async with slots:
            cut = chance.randint(0, body["max_tokens"])
            whole, _ = await case.answer(body, name=f"s{number}")
            rest, _ = await case.answer(body, whole.tokens(cut), name=f"s{number}")
        begin = "".join(piece.text for piece in whole.pieces[:cut])
        assert begin + rest.text() == whole.text() == expected[body["max_tokens"]]

    await asyncio.gather(*[one(number, body) for number, body in enumerate(bodies)])


async def test_texts_of_one_answer_keep_their_order(case: Case) -> None:
    listener, end = await case.answer({**STORY, "n": 3})
    single, _ = await case.answer(STORY)
    assert [listener.text(index) for index in range(3)] == [single.text()] * 3
    assert isinstance(end, SessionEnd)
    assert end.completion_tokens == 90
    last = {piece.index: piece.finish_reason for piece in listener.pieces}
    assert last == dict.fromkeys(range(3), "length")


@pytest.mark.parametrize(
    ("body", "delivered", "code", "param"),
    [
        ({**STORY, "echo": True}, (), "unsupported_parameter", "echo"),
        ({**STORY, "n": 200}, (), "invalid_value", "n"),
        ({**STORY, "n": 2}, (5,), "invalid_request", None),
    ],
)
async def test_a_request_that_cannot_be_answered_is_refused(
    case: Case, body: dict[str, Any], delivered: tuple[int, ...], code: str, param: str | None
) -> None:
    listener, refused = await case.answer(body, delivered)
    assert isinstance(refused, SessionRefused)
    assert (refused.session_id, refused.code, refused.param) == ("s", code, param)
    assert listener.pieces == []


async def test_a_prompt_that_is_too_long_has_both_numbers(child: Case) -> None:
    _, refused = await child.answer({**STORY, "prompt": "word " * 900})
    assert isinstance(refused, SessionRefused)
    assert (refused.code, refused.param) == ("context_length_exceeded", "prompt")
    assert "512" in refused.message
    assert "2702" in refused.message


async def test_a_model_that_is_not_loaded_streams_nothing(case: Case) -> None:
    work = msgspec.structs.replace(case.work(STORY), model_id="another")
    outcome = await case.runtime.open(work, Listener())
    assert isinstance(outcome, RuntimeFailure)
    assert (outcome.attempt_id, outcome.reason) == ("s", Failure.MODEL_UNAVAILABLE)


async def test_a_stopped_session_ends_at_once_and_says_no_more(case: Case) -> None:
    listener, answering = await case.begin(LASTING)
    await case.runtime.stop("s")
    told = len(listener.pieces)
    assert await answering == RuntimeFailure("s", Failure.STOPPED)
    assert told < LASTING_TOKENS
    others = await asyncio.gather(*[case.answer(STORY, name=name) for name in "ab"])
    assert all(isinstance(outcome, SessionEnd) for _, outcome in others)
    assert len(listener.pieces) == told


async def test_a_session_that_nobody_waits_for_is_stopped(case: Case) -> None:
    listener, answering = await case.begin(LASTING)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    told = len(listener.pieces)
    others = await asyncio.gather(*[case.answer(STORY, name=name) for name in "ab"])
    assert all(isinstance(outcome, SessionEnd) for _, outcome in others)
    assert len(listener.pieces) == told


async def test_a_killed_runtime_ends_its_sessions(doomed: Case) -> None:
    _, answering = await doomed.begin(LASTING)
    await doomed.runtime.kill()
    outcome = await answering
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.reason == Failure.STOPPED
    _, later = await doomed.answer(STORY)
    assert isinstance(later, RuntimeFailure)
    await doomed.start()
    assert isinstance((await doomed.answer(STORY))[1], SessionEnd)


async def test_sessions_and_attempts_share_the_slots(child: Case) -> None:
    _, first = await child.begin(LASTING, "first")
    line = msgspec.json.encode(STORY) + b"\n"
    attempt = RuntimeWork("attempt", child.model.model_id, COMPLETIONS, line * 40)
    second = asyncio.create_task(child.runtime.run(attempt))
    await asyncio.sleep(0)
    _, refused = await child.answer(STORY, name="third")
    assert refused == RuntimeFailure("third", Failure.RUNTIME_REFUSED, "no slot is free")
    await child.runtime.stop("first")
    assert isinstance((await child.answer(STORY, name="third"))[1], SessionEnd)
    assert isinstance(await second, RuntimeResult)
    assert isinstance(await first, RuntimeFailure)


async def test_a_session_tells_what_it_used(child: Case) -> None:
    _, end = await child.answer({**LONG, "max_tokens": 200})
    assert isinstance(end, SessionEnd)
    assert end.cpu_ms > 0


async def test_a_suspended_session_goes_on_and_loses_nothing(child: Case) -> None:
    whole, _ = await child.answer(LONG)
    listener, answering = await child.begin(LASTING)
    child.runtime.suspend()
    try:
        # What lay in the pipe comes, and then nothing.
        seen = -1
        while seen != len(listener.pieces):
            seen = len(listener.pieces)
            await asyncio.sleep(0.05)
        assert not answering.done()
    finally:
        child.runtime.resume()
    assert isinstance(await answering, SessionEnd)
    assert [listener.text(index) for index in range(12)] == [whole.text()] * 12


async def test_an_agent_that_reads_slowly_loses_nothing(child: Case) -> None:
    """The pipe fills, and the program waits."""
    body = {**LONG, "logprobs": 5}
    whole, _ = await child.answer(body)
    assert sum(len(piece.logprobs) for piece in whole.pieces) > 65536
    listener, answering = await child.begin(body)
    time.sleep(0.5)  # noqa: ASYNC251 - nothing is read meanwhile.
    assert isinstance(await answering, SessionEnd)
    assert listener.pieces == whole.pieces


async def test_what_is_too_large_is_not_sent(child: Case) -> None:
    work = msgspec.structs.replace(child.work(STORY), delivered=(1,) * 8_000_000)
    outcome = await child.runtime.open(work, Listener())
    assert outcome == RuntimeFailure("s", Failure.RUNTIME_REFUSED, "too large an input")


async def test_a_crash_fails_its_sessions(tmp_path_factory: pytest.TempPathFactory) -> None:
    case = new_case("llama", tmp_path_factory)
    await case.start()
    _, answering = await case.begin(LASTING)
    assert isinstance(case.runtime, ChildRuntime)
    os.kill(case.runtime.process_id, signal.SIGKILL)
    assert await answering == RuntimeFailure("s", Failure.RUNTIME_CRASHED, "signal 9")
    await until(lambda: len(case.endings) > 0)


async def test_an_encoder_streams_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = minilm_model(tmp_path_factory)
    settings = ChildSettings(models_folder=model.folder.parent, niceness=0)
    case = Case(ChildRuntime("onnx", settings), model)
    await case.start()
    _, outcome = await case.answer(STORY)
    await case.runtime.kill()
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.reason == Failure.RUNTIME_REFUSED


CLAIM = SandboxReport(
    has_no_network=True,
    dies_with_agent=True,
    cannot_gain_privileges=True,
    has_limited_memory=True,
    filesystem_read_only=True,
)


class _OddPiece(msgspec.Struct, array_like=True, tag="Piece"):
    """A piece as no sane program tells it."""

    number: int
    piece: tuple[Any, ...]


@pytest.mark.parametrize("kind", ["run", "open"])
@pytest.mark.parametrize(
    ("said", "is_sane_of"),
    [
        (Done(1, b"", 0, 0, 0), "run"),
        (Ended(1, 0, 0, 0), "open"),
        (Refused(1, "invalid_request", "no", None), "open"),
        (Refused(1, "no_such_code", "no", None), None),
        (_OddPiece(1, (0, (), "", b"", "bored", b"")), None),
        (_OddPiece(1, (-1, (), "", b"", "", b"")), None),
        (_OddPiece(1, (0, (2**40,), "", b"", "", b"")), None),
    ],
)
async def test_a_program_that_says_what_it_cannot_know_is_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    said: AnyFromRuntime | _OddPiece,
    is_sane_of: str | None,
) -> None:
    """A stand-in for a program that a model has taken over."""
    frames = [ENCODER.encode(Ready(CLAIM, ())), ENCODER.encode(said)]
    first, second = [length_prefix(frame) + frame for frame in frames]
    code = (
        "import sys; o = sys.stdout.buffer\n"
        f"o.write({first!r}); o.flush(); sys.stdin.buffer.read(1)\n"
        f"o.write({second!r}); o.flush(); sys.stdin.buffer.read()"
    )
    runtime = ChildRuntime("llama", ChildSettings(models_folder=tmp_path))
    monkeypatch.setattr(runtime, "_command", lambda: [sys.executable, "-c", code])
    await runtime.start(lambda _reason: None)
    outcome: object
    if kind == "run":
        outcome = await runtime.run(RuntimeWork("a", "m", COMPLETIONS, b""))
    else:
        outcome = await runtime.open(SessionWork("a", "m", COMPLETIONS, b""), Listener())
    await runtime.kill()
    if kind == is_sane_of:
        assert not isinstance(outcome, RuntimeFailure)
    else:
        assert outcome == RuntimeFailure("a", Failure.RUNTIME_CRASHED, "signal 9")


async def test_pieces_of_unknown_sessions_are_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [Ready(CLAIM, ()), Piece(9, SessionPiece(0, (1,), "x")), Ended(1, 2, 3, 4)]
    frames = [length_prefix(frame) + frame for frame in map(ENCODER.encode, said)]
    code = (
        "import sys; o = sys.stdout.buffer\n"
        f"o.write({frames[0]!r}); o.flush(); sys.stdin.buffer.read(1)\n"
        f"o.write({b''.join(frames[1:])!r}); o.flush(); sys.stdin.buffer.read()"
    )
    runtime = ChildRuntime("llama", ChildSettings(models_folder=tmp_path))
    monkeypatch.setattr(runtime, "_command", lambda: [sys.executable, "-c", code])
    await runtime.start(lambda _reason: None)
    listener = Listener()
    outcome = await runtime.open(SessionWork("a", "m", COMPLETIONS, b""), listener)
    await runtime.kill()
    assert (outcome, listener.pieces) == (SessionEnd("a", 2, 3, 4), [])
