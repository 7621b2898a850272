"""A line of deeds: all begin in their order, none waits for another, few tasks are needed."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from terafleet.agent.deeds import DeedLine, Deeds
from tests.contract.agent_stage import until


class Stage:
    """A line whose deeds wait for the gates that a test puts up."""

    def __init__(self) -> None:
        self.deeds = Deeds()
        self.spawned = 0
        self.gates: dict[int, asyncio.Future[None]] = {}
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.waited: list[tuple[int, int]] = []
        """Each deed that had to wait, and how many had begun by then."""
        self.line: DeedLine[int] = DeedLine(self._deed, self._spawn, self._wait)

    def add(self, *numbers: int, waiting: tuple[int, ...] = ()) -> None:
        """Add deeds; those in `waiting` wait for a gate."""
        for number in waiting:
            self.gates[number] = asyncio.get_running_loop().create_future()
        for number in numbers:
            self.line.add(number)

    async def settle(self) -> None:
        """Let everything happen that can."""
        for _ in range(200):
            await asyncio.sleep(0)

    def _spawn(self, deed: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        self.spawned += 1
        return self.deeds.spawn(deed)

    def _wait(self, number: int) -> None:
        self.waited.append((number, len(self.begun)))

    async def _deed(self, number: int) -> None:
        self.begun.append(number)
        if number in self.gates:
            await self.gates[number]
        self.ended.append(number)


async def until_raised(deeds: Deeds) -> None:
    """What a deed raised, within reason."""
    async with asyncio.timeout(5):
        await deeds.watch()


async def test_deeds_that_need_not_wait_share_a_task() -> None:
    stage = Stage()
    stage.add(*range(100))
    assert stage.begun == [], "nothing begins within the call"
    await stage.settle()
    assert stage.ended == list(range(100))
    assert stage.spawned == 1
    stage.add(100)
    await stage.settle()
    assert (stage.ended[-1], stage.spawned) == (100, 2)


async def test_no_deed_waits_for_another() -> None:
    stage = Stage()
    stage.add(*range(6), waiting=(0, 3, 4))
    await stage.settle()
    assert stage.begun == list(range(6))
    assert stage.ended == [1, 2, 5]
    for number in (4, 0, 3):
        stage.gates[number].set_result(None)
        await stage.settle()
    assert stage.ended == [1, 2, 5, 4, 0, 3]


async def test_a_deed_that_comes_while_others_wait_begins() -> None:
    stage = Stage()
    stage.add(0, waiting=(0,))
    await stage.settle()
    stage.add(1)
    await stage.settle()
    assert stage.ended == [1]
    stage.gates[0].set_result(None)
    await stage.settle()
    assert stage.ended == [1, 0]


async def test_a_deed_may_wait_often_and_with_a_deadline() -> None:
    ended: list[int] = []

    async def deed(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        ended.append(number)

    deeds = Deeds()
    line = DeedLine(deed, deeds.spawn)
    for number in range(3):
        line.add(number)
    await until(lambda: len(ended) == 3)
    assert ended == [0, 1, 2]


async def test_a_bug_in_one_is_heard_and_keeps_no_other_from_beginning() -> None:
    stage = Stage()
    stage.add(0, 1, 2, 3, waiting=(1, 3))
    stage.gates[1].set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await until_raised(stage.deeds)
    await stage.settle()
    assert (stage.begun, stage.ended) == ([0, 1, 2, 3], [0, 2])
    stage.gates[3].set_result(None)
    await stage.settle()
    assert stage.ended == [0, 2, 3]


async def test_a_bug_after_a_wait_is_heard() -> None:
    stage = Stage()
    stage.add(0, waiting=(0,))
    await stage.settle()
    stage.gates[0].set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await until_raised(stage.deeds)


async def test_a_stop_cancels_those_that_wait_and_begins_no_other() -> None:
    begun: list[int] = []
    cancelled: list[int] = []

    async def deed(number: int) -> None:
        begun.append(number)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    deeds = Deeds()
    line = DeedLine(deed, deeds.spawn)
    for number in range(3):
        line.add(number)
    await until(lambda: len(begun) == 3)
    line.add(3)
    async with asyncio.timeout(5):
        await deeds.stop()
    assert sorted(cancelled) == begun == [0, 1, 2]


async def test_a_deed_that_has_to_wait_is_told_of_before_another_begins() -> None:
    stage = Stage()
    stage.add(*range(5), waiting=(1, 3))
    await stage.settle()
    assert stage.waited == [(1, 2), (3, 4)]
    stage.gates[1].set_result(None)
    stage.gates[3].set_result(None)
    await stage.settle()
    assert len(stage.waited) == 2, "to go on is not to wait"


async def test_each_wait_of_a_deed_is_told_of() -> None:
    waited: list[str] = []
    heard: list[list[str]] = []

    async def deed(name: str) -> None:
        assert name == "a"
        await asyncio.sleep(0)
        heard.append(list(waited))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        heard.append(list(waited))
        await asyncio.sleep(0)
        heard.append(list(waited))

    deeds = Deeds()
    line = DeedLine(deed, deeds.spawn, waited.append)
    line.add("a")
    await until(lambda: len(heard) == 3)
    assert heard == [["a"], ["a"] * 2, ["a"] * 3]


async def test_a_wait_that_begins_with_an_error_is_told_of() -> None:
    waited: list[int] = []

    async def deed(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            assert waited == [number, number]
            waited.append(-1)

    deeds = Deeds()
    DeedLine(deed, deeds.spawn, waited.append).add(7)
    await until(lambda: waited)
    async with asyncio.timeout(5):
        await deeds.stop()
    assert waited == [7, 7, -1]


async def test_a_bug_in_what_hears_of_waits_is_heard() -> None:
    def raise_bug(number: int) -> None:
        raise ZeroDivisionError(number)

    async def deed(number: int) -> None:
        del number
        await asyncio.Event().wait()

    deeds = Deeds()
    DeedLine(deed, deeds.spawn, raise_bug).add(0)
    with pytest.raises(ZeroDivisionError):
        await until_raised(deeds)
