"""The page of an agent that runs: it says what the agent is about, and that its owner paused it."""

import asyncio

import msgspec

from terafleet.agent.app import run_agent
from terafleet.agent.history import Outcome, read_attempts
from terafleet.agent.owner_pause import write_pause
from terafleet.agent.status import read_status
from terafleet.core.policy import OwnerPolicy
from tests.contract.agent_stage import until
from tests.contract.test_agent import World, prepared_folder, world
from tests.contract.test_page import answer, free_port, head

__all__ = ["world"]

ASK = head("GET / HTTP/1.1", "Host: localhost")


async def shown(port: int) -> str:
    """The page at this moment."""
    return (await answer(port, ASK)).decode()


async def test_the_page_follows_the_agent_and_ends_with_it(world: World) -> None:
    port = free_port()
    settings = msgspec.structs.replace(prepared_folder(world), page_port=port, name="Asta")
    running = asyncio.create_task(run_agent(settings))
    await until(lambda: (found := read_status(world.folder)) and found.page_url)
    assert "<h1>Asta " in await shown(port)
    assert "There were none." in await shown(port)

    assert write_pause(world.folder, OwnerPolicy(), True, "2999-01-01 07:00") is None

    def is_paused() -> bool:
        status = read_status(world.folder)
        return status is not None and "owner_paused" in status.refusals

    await until(is_paused)
    text = await shown(port)
    assert "the owner has paused it since" in text
    assert "until 2999-01-01 07:00" in text
    running.cancel()
    await asyncio.wait({running})
    assert await answer_or_nothing(port) == ""


async def answer_or_nothing(port: int) -> str:
    """The page, or nothing where nobody listens."""
    try:
        return await shown(port)
    except ConnectionRefusedError:
        return ""


async def test_what_an_agent_did_is_told_from_its_record(world: World) -> None:
    async with world.agent() as agent:
        await world.is_permitting(agent)
        world.grant(units=2)
        await until(lambda: agent.guard.spending.attempts == 2)
    (world.folder / "record").mkdir()
    (world.folder / "record.sqlite").rename(world.folder / "record" / "record.sqlite")
    rows = read_attempts(world.folder, 0, 10)
    assert isinstance(rows, list)
    assert [row.outcome for row in rows] == [Outcome.ANSWERED] * 2
    assert {(row.work_class, row.endpoint) for row in rows} == {("batch", "/v1/e")}
