"""The interfaces that the vehicle agent's shell needs from the world."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from terafleet.core.isolation import SandboxReport as SandboxReport
from terafleet.core.readings import Readings
from terafleet.core.reasons import Failure


class RuntimeModel(msgspec.Struct, frozen=True):
    """A model that is on the car's disk, checked, ready to be loaded.

    `folder` holds the files that the manifest names. `options` are the runtime's own
    (for `llama`: `context_tokens`; for `onnx`: `tokens_max`), all integers.
    """

    model_id: str
    runtime: str
    folder: Path
    options: Mapping[str, int] = {}


class RuntimeWork(msgspec.Struct, frozen=True):
    """The input of one attempt: JSON Lines of OpenAI request bodies, one endpoint for all."""

    attempt_id: str
    model_id: str
    endpoint: str
    payload: bytes


class RuntimeResult(msgspec.Struct, frozen=True):
    """The output of one attempt: JSON Lines `{"status_code": …, "body": …}` in input order."""

    attempt_id: str
    payload: bytes
    prompt_tokens: int
    completion_tokens: int
    cpu_ms: int


class RuntimeFailure(msgspec.Struct, frozen=True):
    """Why an attempt, session or load gave no result; `reason` is a name of `core.reasons`.

    `attempt_id` is the name of the attempt or of the session, empty for a load.
    """

    attempt_id: str
    reason: str
    detail: str = ""


class SessionWork(msgspec.Struct, frozen=True):
    """A live request: one body in OpenAI's form, and how much of its answer was told before.

    `delivered` are the ids of the tokens that the customer has of the answer's only text; the
    answer goes on behind them as if it had never been interrupted. A body that
    `protocol.live.can_move` doesn't allow it has none.
    """

    session_id: str
    model_id: str
    endpoint: str
    body: bytes
    delivered: tuple[int, ...] = ()


TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class SessionPiece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What came of the text `index` of an answer: `text` is what the customer gets now.

    `token_ids` are the tokens whose text is wholly told with this piece and those before it, so
    that the answer can go on elsewhere behind any piece. Of a text that can't move there may be
    none. `logprobs` is JSON in OpenAI's form for the tokens of this piece, or empty; in that of
    completions, `text_offset` counts from the beginning of this piece. `finish_reason` is empty
    until the text's last piece. `tool_calls` is a JSON array of OpenAI's deltas, or empty.
    """

    index: Annotated[int, Meta(ge=0)]
    token_ids: tuple[TokenId, ...]
    text: str
    logprobs: bytes = b""
    finish_reason: Literal["", "stop", "length", "tool_calls"] = ""
    tool_calls: bytes = b""


class SessionEnd(msgspec.Struct, frozen=True):
    """The whole answer is told; what was delivered before counts among its completion tokens."""

    session_id: str
    prompt_tokens: int
    completion_tokens: int
    cpu_ms: int


class SessionRefused(msgspec.Struct, frozen=True):
    """The model can't take the request; `code` is one of `protocol.errors`, for the customer."""

    session_id: str
    code: str
    message: str
    param: str | None = None


class RuntimeLoaded(msgspec.Struct, frozen=True):
    """A model stands in memory."""

    model_id: str
    load_ms: int
    memory_bytes: int


class RuntimeUnavailable(Exception):
    """The program did not start behind its walls; `reason` says why."""

    def __init__(self, reason: Failure, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Runtime(Protocol):
    """The program that runs AI models in the car; one a vehicle, several slots."""

    async def start(self, on_exit: Callable[[str], None]) -> SandboxReport:
        """Start the program; `on_exit(reason)` is called once when it ends by itself.

        It may be started again after its end. Raises RuntimeUnavailable.
        """
        ...

    async def load(self, model: RuntimeModel) -> RuntimeLoaded | RuntimeFailure:
        """Bring a model into memory; loading a loaded model answers at once."""
        ...

    async def run(self, work: RuntimeWork) -> RuntimeResult | RuntimeFailure:
        """Run one attempt to its end; several may run at once, up to the slots."""
        ...

    async def open(
        self, work: SessionWork, take: Callable[[SessionPiece], None]
    ) -> SessionEnd | SessionRefused | RuntimeFailure:
        """Answer one live request, in a slot as an attempt has it.

        `take` gets each piece when it comes, in the order of its text; none comes after the end.
        It must return at once.
        """
        ...

    async def stop(self, attempt_id: str) -> None:
        """Give up one attempt or session, which ends at once with the reason `stopped`."""
        ...

    def suspend(self) -> None:
        """Take the program off the processor at once; never blocks, never raises."""
        ...

    def resume(self) -> None:
        """Let a suspended program go on."""
        ...

    async def kill(self) -> None:
        """End the program and give its memory back; safe to call twice."""
        ...

    def cpu_ms(self) -> int:
        """Processor time that the program has used since it started."""
        ...


RuntimeFactory = Callable[[], Awaitable[Runtime]]


class VehicleInterface(Protocol):
    """What the car's sensors say, wherever they are read."""

    async def run(self, deliver: Callable[[Readings], None]) -> None:
        """Deliver a sample at each interval and at each change, until cancelled.

        A sensor that can't be read is a missing reading; it never ends the samples. `at_ms` is
        the agent's clock at the moment of the sample.
        """
        ...
