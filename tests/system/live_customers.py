"""Customers who ask for streams all the time, each of which knows what it must be told."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import httpx
import msgspec

from tests.system.link_relay import LinkRelay

COMPLETIONS = "/v1/completions"
HUNG_S = 25.0
"""No fault of a fleet lasts so long that nothing may come for this time."""

AGAIN_S = 0.25
"""How soon a customer asks again who was refused, or found nobody there."""

DATA, DONE = "data: ", "data: [DONE]"


class Right(msgspec.Struct, frozen=True):
    """A request and the only right answer to it."""

    model: str
    prompt: str
    tokens: int
    text: str


class Told(msgspec.Struct):
    """One stream: what was asked, when, what came, and how it ended.

    `ending` is `done`, `error` (in words or as a status), `closed` (the connection), or `hung`;
    `nobody` is no stream at all, because nobody listened.
    """

    right: Right
    began_s: float
    ended_s: float = 0.0
    text: str = ""
    ending: str = ""
    why: str = ""
    moves: int = 0
    came_s: list[float] = []

    @property
    def gap_s(self) -> float:
        """The longest time that its customer waited for the next words."""
        return max((b - a for a, b in zip(self.came_s, self.came_s[1:], strict=False)), default=0)


class _Choice(msgspec.Struct, frozen=True):
    text: str = ""


class _Explained(msgspec.Struct, frozen=True):
    moves: int = 0


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    error: dict[str, Any] | None = None
    terafleet: _Explained = _Explained()


class Crowd:
    """Customers in a thread of their own, with the relays of links that they share its loop with.

    Each asks for one stream after the other, until `rest` is called.
    """

    def __init__(self, url: str, secret: str, seed: int) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {secret}", "Terafleet-Explain": "1"}
        self._chance = random.Random(seed)
        self._is_resting = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._asking: list[asyncio.Future[None]] = []
        self.told: list[Told] = []
        self._thread.start()

    def relay(self, target_port: int) -> LinkRelay:
        """A relay that is up."""
        relay = LinkRelay(target_port)
        self._do(relay.start())
        return relay

    def switch(self, deed: Callable[[], None]) -> None:
        """Do something to a relay in its loop."""
        self._loop.call_soon_threadsafe(deed)

    def ask(self, rights: Sequence[Right], customers: int) -> None:
        """Let so many customers ask for these, in an order of their own."""

        async def begin() -> None:
            for _ in range(customers):
                chance = random.Random(self._chance.random())
                asking = asyncio.ensure_future(self._keep_asking(rights, chance))
                self._asking.append(asking)

        self._do(begin())

    def rest(self) -> None:
        """Let all streams come to their ends, and ask for no more."""
        self._is_resting.set()

        async def wait() -> None:
            await asyncio.gather(*self._asking)

        self._do(wait())

    def close(self, relays: Sequence[LinkRelay]) -> None:
        """End the thread; streams that are open are lost."""
        self._is_resting.set()

        async def end() -> None:
            for asking in self._asking:
                asking.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)
            for relay in relays:
                await relay.stop()

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(4 * HUNG_S)

    async def _keep_asking(self, rights: Sequence[Right], chance: random.Random) -> None:
        timeout = httpx.Timeout(HUNG_S)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=timeout, trust_env=False
        ) as client:
            while not self._is_resting.is_set():
                told = Told(chance.choice(rights), time.monotonic())
                self.told.append(told)
                await _ask(client, told)
                told.ended_s = time.monotonic()
                if told.ending != "done":
                    await asyncio.sleep(AGAIN_S)


async def _ask(client: httpx.AsyncClient, told: Told) -> None:
    asked = {
        "model": told.right.model,
        "prompt": told.right.prompt,
        "max_tokens": told.right.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with client.stream("POST", COMPLETIONS, json=asked) as response:
            if response.status_code != HTTPStatus.OK:
                told.ending, told.why = "error", (await response.aread()).decode()
                return
            async for line in response.aiter_lines():
                _take(told, line)
    except httpx.ConnectError:
        told.ending = "nobody"
    except httpx.TimeoutException as error:
        told.ending, told.why = "hung", repr(error)
    except httpx.TransportError as error:
        told.ending, told.why = told.ending or "closed", repr(error)
    told.ending = told.ending or "closed"


def _take(told: Told, line: str) -> None:
    """A line of a stream; nothing comes behind its end."""
    if not line.startswith(DATA):
        return
    assert not told.ending, f"{line} behind {told.ending}: {told.why}"
    if line == DONE:
        told.ending = "done"
        return
    chunk = msgspec.json.decode(line.removeprefix(DATA), type=_Chunk)
    told.moves = max(told.moves, chunk.terafleet.moves)
    if chunk.error is not None:
        told.ending, told.why = "error", str(chunk.error)
    text = "".join(choice.text for choice in chunk.choices)
    if text:
        told.text += text
        told.came_s.append(time.monotonic())
