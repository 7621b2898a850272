"""A program that has work and stands still is found and ended; one that is only slow is not."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from terafleet.agent.adapters.runtime.child import ChildRuntime, ChildSettings
from terafleet.agent.adapters.runtime.stillness import LOOK_MS, STILL_LOOKS, Stillness
from terafleet.agent.ports import RuntimeFailure, RuntimeLoaded, RuntimeWork, SessionWork
from terafleet.core.reasons import Failure
from tests.contract.agent_stage import until
from tests.contract.models_on_disk import minilm_model, stories_model

STILL_S = STILL_LOOKS * LOOK_MS / 1000
DEADLINE_S = 20.0
"""Far less than a session's own deadline; on a computer that has little else to do it is 1.2 s."""


def looks(stillness: Stillness, seen: str) -> Iterator[bool]:
    """What is found at each look; `+` is a look at which the program has used processor time."""
    cpu_ns = 0
    for letter in seen:
        cpu_ns += letter == "+"
        yield stillness.look(cpu_ns, partial(str, letter))


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ("+TTTTT", "     x"),
        ("+SSSSS", "     x"),
        ("+TTTT+TTTTT", "          x"),
        ("+SSSSRSSSSS", "          x"),
        ("+RRRRRRRR", "         "),
        ("+DDDDDDDD", "         "),
        ("+SSSS+SSSS+", "           "),
        ("+STtSS", "     x"),
    ],
)
def test_stillness_is_several_looks_without_a_sign_of_life(seen: str, found: str) -> None:
    assert list(looks(Stillness(), seen)) == [mark == "x" for mark in found]


def test_one_thread_at_work_is_enough() -> None:
    stillness = Stillness()
    assert not any(stillness.look(1, lambda: {"S", "R"}) for _ in range(3 * STILL_LOOKS))
    assert [stillness.look(1, lambda: {"S"}) for _ in range(STILL_LOOKS)][-1]


def test_what_was_forgotten_counts_no_more() -> None:
    stillness = Stillness()
    assert not any(looks(stillness, "+" + "T" * (STILL_LOOKS - 1)))
    stillness.forget()
    # The first look behind it has nothing to compare with.
    assert list(looks(stillness, "T" * (STILL_LOOKS + 1)))[-2:] == [False, True]


def test_any_looks_agree_with_the_longest_stretch_of_stillness() -> None:
    chance = random.Random(1)
    for _ in range(200):
        seen = "+" + "".join(chance.choices("+TSRD", [1, 4, 4, 1, 1], k=40))
        still, expected = 0, []
        for letter in seen:
            still = still + 1 if letter in "TS" else 0
            expected.append(still >= STILL_LOOKS)
        assert list(looks(Stillness(), seen)) == expected


class Frozen:
    """A runtime with a model, whose program a test stops from outside."""

    def __init__(self, kind: str, sessions: pytest.TempPathFactory) -> None:
        self.model = minilm_model(sessions) if kind == "onnx" else stories_model(sessions)
        settings = ChildSettings(models_folder=self.model.folder.parent, slots=2, niceness=0)
        self.runtime = ChildRuntime(kind, settings)
        self.endings: list[str] = []

    async def start(self, is_loaded: bool = True) -> None:
        """Start the program, and load the model if that is wanted."""
        await self.runtime.start(self.endings.append)
        if is_loaded:
            assert isinstance(await self.runtime.load(self.model), RuntimeLoaded)

    def freeze(self) -> float:
        """Stop the program from outside, at this moment."""
        os.kill(self.runtime.process_id, signal.SIGSTOP)
        return time.monotonic()

    async def check_found(self, frozen_s: float) -> None:
        """That it was found in time, and has been ended as a crash."""
        assert STILL_S <= time.monotonic() - frozen_s < DEADLINE_S
        await until(lambda: self.endings == [Failure.RUNTIME_CRASHED])
        assert not os.path.exists(f"/proc/{self.runtime.process_id}")  # noqa: ASYNC240

    def session(self, **asked: Any) -> SessionWork:
        """A live request."""
        body = {"model": "m", "prompt": "Once", "max_tokens": 400, "n": 12, **asked}
        return SessionWork("s", self.model.model_id, "/v1/completions", msgspec.json.encode(body))

    def attempt(self, requests: int) -> RuntimeWork:
        """An attempt that takes some milliseconds a request."""
        body: dict[str, Any] = {"model": "m", "prompt": "Once", "max_tokens": 64}
        endpoint = "/v1/completions"
        if self.model.runtime == "onnx":
            endpoint, body = "/v1/embeddings", {"model": "m", "input": "parked cars compute " * 60}
        line = msgspec.json.encode(body) + b"\n"
        return RuntimeWork("a", self.model.model_id, endpoint, line * requests)


STOOD_STILL = "it stood still"


async def test_a_session_leaves_a_program_that_froze_before_its_first_piece(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    one = Frozen("llama", tmp_path_factory)
    await one.start()
    frozen_s = one.freeze()
    outcome = await one.runtime.open(one.session(), lambda _piece: None)
    assert outcome == RuntimeFailure("s", Failure.RUNTIME_CRASHED, STOOD_STILL)
    await one.check_found(frozen_s)
    await one.start()
    await one.runtime.kill()


async def test_a_session_leaves_a_program_that_freezes_on_its_way(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    one = Frozen("llama", tmp_path_factory)
    await one.start()
    has_begun = asyncio.Event()
    work = one.session(logit_bias={"1": -100, "2": -100})
    session = asyncio.create_task(one.runtime.open(work, lambda _piece: has_begun.set()))
    await has_begun.wait()
    frozen_s = one.freeze()
    assert await session == RuntimeFailure("s", Failure.RUNTIME_CRASHED, STOOD_STILL)
    await one.check_found(frozen_s)


@pytest.mark.parametrize("kind", ["onnx", "llama"])
async def test_an_attempt_of_a_frozen_program_breaks(
    tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    one = Frozen(kind, tmp_path_factory)
    await one.start()
    attempt = asyncio.create_task(one.runtime.run(one.attempt(300)))
    await asyncio.sleep(0.05)
    frozen_s = one.freeze()
    assert await attempt == RuntimeFailure("a", Failure.RUNTIME_CRASHED, STOOD_STILL)
    await one.check_found(frozen_s)


async def test_a_load_of_a_frozen_program_fails(tmp_path_factory: pytest.TempPathFactory) -> None:
    one = Frozen("llama", tmp_path_factory)
    await one.start(is_loaded=False)
    frozen_s = one.freeze()
    outcome = await one.runtime.load(one.model)
    assert outcome == RuntimeFailure("", Failure.RUNTIME_CRASHED, STOOD_STILL)
    await one.check_found(frozen_s)


async def test_a_program_that_was_suspended_or_owes_nothing_may_stand_still(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    one = Frozen("llama", tmp_path_factory)
    await one.start()
    attempt = asyncio.create_task(one.runtime.run(one.attempt(20)))
    await asyncio.sleep(0)
    one.runtime.suspend()
    await asyncio.sleep(STILL_S + 0.5)
    assert not attempt.done()
    one.runtime.resume()
    assert not isinstance(await attempt, RuntimeFailure)
    one.freeze()
    await asyncio.sleep(STILL_S + 0.5)
    os.kill(one.runtime.process_id, signal.SIGCONT)
    assert not isinstance(await one.runtime.run(one.attempt(1)), RuntimeFailure)
    assert one.endings == []
    await one.runtime.kill()


async def test_an_agent_that_was_held_up_does_not_blame_its_runtime(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nothing is read meanwhile: the pipe is full, and the program waits for the agent."""
    one = Frozen("llama", tmp_path_factory)
    await one.start()
    asked = {"logprobs": 5, "logit_bias": {"1": -100, "2": -100}}
    session = asyncio.create_task(one.runtime.open(one.session(**asked), lambda _piece: None))
    await asyncio.sleep(0.1)
    time.sleep(STILL_S + 0.5)  # noqa: ASYNC251 - so that no callback runs.
    assert not isinstance(await session, RuntimeFailure)
    assert one.endings == []
    await one.runtime.kill()
