"""A customer who costs next to nothing: one HTTP connection, streamed chat answers, their times.

An ordinary client takes longer for a token than the gateway does, and would be measured in its
place.
"""

import asyncio
import contextlib
import time
from http import HTTPStatus
from typing import Any

import msgspec

DATA = b"data: "
DONE = b"data: [DONE]"
ANSWER_S_MAX = 60.0


class Streamed(msgspec.Struct):
    """One answer: its text, when each piece of it came (s), and what ended it.

    `ending` is "done", "error" with words, or "hung".
    """

    began_s: float
    text: str = ""
    came_s: list[float] = []
    ended_s: float = 0.0
    ending: str = "hung"
    moves: int = 0


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _Explained(msgspec.Struct, frozen=True):
    moves: int = 0


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    error: dict[str, Any] | None = None
    terafleet: _Explained = _Explained()


_CHUNK = msgspec.json.Decoder(_Chunk)


class Customer:
    """Asks one gateway for chats, one at a time; opens its connection anew when it was lost."""

    def __init__(self, host: str, port: int, api_key: str, model: str) -> None:
        self._host, self._port = host, port
        self._api_key, self._model = api_key, model
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def chat(self, tokens: int) -> Streamed:
        """Ask for an answer of so many tokens and read it to its end."""
        answer = Streamed(time.perf_counter())
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._ask(tokens)
                await self._read(answer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            answer.ending = answer.ending if answer.ending != "hung" else f"hung: {error!r}"
            await self.close()
        answer.ended_s = time.perf_counter()
        return answer

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None

    async def _ask(self, tokens: int) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        body = msgspec.json.encode(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": "count"}],
                "max_tokens": tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Authorization: Bearer {self._api_key}\r\nContent-Type: application/json\r\n"
            f"Terafleet-Explain: 1\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._streams[1].write(head.encode() + body)

    async def _read(self, answer: Streamed) -> None:
        assert self._streams is not None
        reader = self._streams[0]
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status != HTTPStatus.OK:
            answer.ending = f"error: HTTP {status}"
            await self.close()
            return
        rest = b""
        while (size := int(await reader.readuntil(b"\r\n"), 16)) > 0:
            piece = await reader.readexactly(size + 2)
            *lines, rest = (rest + piece[:-2]).split(b"\n")
            for line in lines:
                _take(line, answer)
        await reader.readexactly(2)


def _take(line: bytes, answer: Streamed) -> None:
    """One line of the stream."""
    if line.startswith(DONE):
        answer.ending = "done" if answer.ending == "hung" else answer.ending
    elif line.startswith(DATA):
        chunk = _CHUNK.decode(line[len(DATA) :])
        answer.moves = max(answer.moves, chunk.terafleet.moves)
        if chunk.error is not None:
            answer.ending = f"error: {chunk.error.get('code')}: {chunk.error.get('message')}"
        text = "".join(choice.delta.content or "" for choice in chunk.choices)
        if text:
            answer.text += text
            answer.came_s.append(time.perf_counter())
