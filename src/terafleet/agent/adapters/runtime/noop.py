"""A runtime that runs no model and answers at once, to measure everything around it."""

import asyncio
from collections.abc import Callable
from typing import Final

from terafleet.agent.ports import (
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
from terafleet.core.reasons import Failure
from terafleet.protocol.live import (
    LiveBody,
    LiveFault,
    can_move,
    choices_of,
    live_body,
    output_tokens_max,
)

_ANSWER = (
    b'{"status_code":200,"body":{"object":"list","model":"noop",'
    b'"data":[{"object":"embedding","index":0,"embedding":[1.0]}],'
    b'"usage":{"prompt_tokens":1,"total_tokens":1}}}\n'
)
_TOKENS_WITHOUT_LIMIT: Final = 256
_ONLY_SANE_CLAIM = SandboxReport(
    has_no_network=False,
    dies_with_agent=True,
    cannot_gain_privileges=False,
    has_limited_memory=False,
    filesystem_read_only=False,
)


class NoopRuntime:
    """Answers each request with the same embedding of one text, in the agent's own process.

    It has no walls and needs none, for it touches nothing; it dies with the agent because it is
    the agent. An attempt takes no time, so there is none to stop or to suspend.

    A session is told the numbers of its tokens: the token at position k has the id k and the
    text `k` with a space behind it, and each text of an answer is as long as the request allows.
    So whoever reads the text sees which token is missing or comes twice.
    """

    def __init__(self) -> None:
        self._loaded: set[str] = set()
        self._open: set[str] = set()

    async def start(self, on_exit: Callable[[str], None]) -> SandboxReport:  # noqa: ARG002
        """Nothing starts, and nothing ends by itself."""
        return _ONLY_SANE_CLAIM

    async def load(self, model: RuntimeModel) -> RuntimeLoaded | RuntimeFailure:
        """Any model will do; its files are not read."""
        self._loaded.add(model.model_id)
        return RuntimeLoaded(model.model_id, load_ms=0, memory_bytes=0)

    async def run(self, work: RuntimeWork) -> RuntimeResult | RuntimeFailure:
        """One answer for each line, each counted as one token."""
        if work.model_id not in self._loaded:
            return RuntimeFailure(work.attempt_id, Failure.MODEL_UNAVAILABLE, "not loaded")
        requests = work.payload.count(b"\n") + (not work.payload.endswith(b"\n"))
        return RuntimeResult(work.attempt_id, _ANSWER * requests, requests, 0, 0)

    async def open(
        self, work: SessionWork, take: Callable[[SessionPiece], None]
    ) -> SessionEnd | SessionRefused | RuntimeFailure:
        """Tell numbers, a token of each text at a time; the prompt counts as one token."""
        session_id = work.session_id
        if work.model_id not in self._loaded:
            return RuntimeFailure(session_id, Failure.MODEL_UNAVAILABLE, "not loaded")
        body = live_body(work.endpoint, work.body)
        if isinstance(body, LiveFault):
            return SessionRefused(session_id, body.code, body.message, body.param)
        if work.delivered and not can_move(body):
            message = "Such an answer can't go on behind its beginning."
            return SessionRefused(session_id, "invalid_request", message)
        self._open.add(session_id)
        try:
            written = await self._tell(work, body, take)
        finally:
            self._open.discard(session_id)
        if written is None:
            return RuntimeFailure(session_id, Failure.STOPPED)
        return SessionEnd(session_id, 1, written, cpu_ms=0)

    async def stop(self, attempt_id: str) -> None:
        """A session says no more; an attempt that could be stopped is already over."""
        self._open.discard(attempt_id)

    def suspend(self) -> None:
        """There is nothing to take off the processor."""

    def resume(self) -> None:
        """There is nothing that waits."""

    async def kill(self) -> None:
        """Forget the models, and end the sessions."""
        self._loaded.clear()
        self._open.clear()

    def cpu_ms(self) -> int:
        """None that could be told from the agent's own."""
        return 0

    async def _tell(
        self, work: SessionWork, body: LiveBody, take: Callable[[SessionPiece], None]
    ) -> int | None:
        """Tell all texts to their ends; how many tokens they have, None when it was stopped."""
        begin, choices = len(work.delivered), choices_of(body)
        end = max(begin, output_tokens_max(body) or _TOKENS_WITHOUT_LIMIT)
        for position in range(begin, end):
            # So that others get their turn, and a stop is heard.
            await asyncio.sleep(0)
            if work.session_id not in self._open:
                return None
            for index in range(choices):
                take(SessionPiece(index, (position,), f"{position} "))
        for index in range(choices):
            take(SessionPiece(index, (), "", finish_reason="length"))
        return end * choices
