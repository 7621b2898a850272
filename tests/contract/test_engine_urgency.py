"""What hurries and what does not: urgent events, and effects that leave later."""

import asyncio

import msgspec

from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.clock import ManualClock
from terafleet.engine.codec import Codec
from terafleet.engine.engine import Engine, Shell
from terafleet.engine.recovery import recover
from tests.contract.engine_stage import THREADED, WAIT_S, StageStore

GATHER_MS = 100


class Said(msgspec.Struct, frozen=True, tag=True):
    """What was said, and when what follows from it may leave."""

    words: str
    when: str
    is_urgent: bool = False


class TimeAdvanced(msgspec.Struct, frozen=True, tag=True):
    """Time has gone by."""

    at_ms: int


class Echo(msgspec.Struct, frozen=True, tag=True):
    """The words, said again."""

    words: str
    when: str


Event = Said | TimeAdvanced
CODEC: Codec[Event, Echo] = Codec(Event, Echo, schema=1)


class Echoes:
    """A machine that says again whatever it hears."""

    def __init__(self, image: bytes | None = None) -> None:
        del image

    def handle(self, *events: Event) -> list[Echo]:
        return [Echo(one.words, one.when) for one in events if isinstance(one, Said)]

    def next_deadline_ms(self) -> int | None:
        return None

    def snapshot(self) -> bytes:
        return b""

    def check_invariants(self) -> None:
        return


class Stage:
    """An engine whose commits stand behind a gate, and what it has said so far."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._news = asyncio.Event()
        self.store = StageStore(MemoryStore(), [])
        shell: Shell[Event, Echo] = Shell(
            self._hear,
            lambda _: (),
            TimeAdvanced,
            is_urgent=lambda event: isinstance(event, Said) and event.is_urgent,
        )
        settings = msgspec.structs.replace(
            THREADED, commit_patience_ms=60_000, commit_gather_ms=GATHER_MS
        )
        recovery = recover(self.store, CODEC, Echoes)
        clock = ManualClock(1_000_000)
        self.engine = Engine(recovery, self.store, CODEC, shell, clock, settings)
        self.running = asyncio.create_task(self.engine.run())

    def say(self, words: str, when: str, *, is_urgent: bool = False) -> None:
        assert self.engine.submit(Said(words, when, is_urgent))

    def _hear(self, effects: list[Echo]) -> None:
        self.heard.extend(one.words for one in effects)
        self._news.set()

    async def until_heard(self, *words: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.heard != list(words):
                self._news.clear()
                await self._news.wait()

    async def end(self) -> None:
        self.store.gate.set()
        await self.engine.stop()
        await self.running


async def test_what_is_urgent_waits_for_no_disk() -> None:
    stage = Stage()
    stage.store.gate.clear()
    stage.say("kept", "commit")
    await asyncio.sleep(0.01)
    stage.say("soon", "now")
    await asyncio.sleep(0.01)
    assert stage.heard == [], "the machine waits for the commit"
    stage.say("at once", "now", is_urgent=True)
    await stage.until_heard("soon", "at once")
    stage.store.gate.set()
    await stage.until_heard("soon", "at once", "kept")
    await stage.end()


async def test_urgency_lasts_for_one_group_only() -> None:
    stage = Stage()
    stage.store.gate.clear()
    stage.say("kept", "commit")
    await asyncio.sleep(0.01)
    stage.say("at once", "now", is_urgent=True)
    await stage.until_heard("at once")
    stage.say("waits", "now")
    await asyncio.sleep(0.01)
    assert stage.heard == ["at once"]
    stage.store.gate.set()
    await stage.until_heard("at once", "kept", "waits")
    await stage.end()


async def test_what_leaves_later_is_kept_first_and_holds_nobody_up() -> None:
    stage = Stage()
    stage.store.gate.clear()
    stage.say("receipt", "later")
    await asyncio.sleep(0.01)
    stage.say("soon", "now")
    await stage.until_heard("soon")
    stage.store.gate.set()
    await stage.until_heard("soon", "receipt")
    assert len(stage.store.log) == 2, "two groups"
    await stage.end()


async def test_what_is_awaited_takes_what_is_not_along_in_its_order() -> None:
    stage = Stage()
    stage.say("receipt", "later")
    await asyncio.sleep(0)
    stage.say("kept", "commit")
    await stage.until_heard("receipt", "kept")
    await stage.end()
