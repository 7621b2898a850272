"""What agent and runtime say to each other over the pipes."""

from typing import Final

import msgspec

from terafleet.agent.ports import SandboxReport, SessionPiece
from terafleet.core.reasons import Failure
from terafleet.core.work import Figure


class HostSettings(msgspec.Struct, frozen=True):
    """How the runtime is to run; it comes on its command line as JSON.

    `threads` is for one attempt, `slots` is how many run at once. `niceness` is added to the
    agent's own. `parent_id` is the process that the runtime must not outlive. `shown`,
    `outside`, `user_id` and `group_id` are as in the sandbox's `Walls`, for a runtime that the
    agent has wrapped.
    """

    slots: int
    threads: int
    memory_bytes: int
    niceness: int
    models_folder: str
    parent_id: int
    shown: tuple[str, ...] = ()
    outside: dict[str, str] = {}
    user_id: int = 0
    group_id: int = 0


class ToRuntime(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What the agent says."""


class Load(ToRuntime, frozen=True):
    """Bring a model into memory; answered with `Loaded` or `LoadFailed`."""

    model_id: str
    folder: str
    options: dict[str, int]


class Run(ToRuntime, frozen=True):
    """Run an attempt; answered with `Done` or `Failed`. The agent gives no number twice."""

    number: int
    model_id: str
    endpoint: str
    payload: bytes


class Open(ToRuntime, frozen=True):
    """Answer a live request; answered with `Piece`s, then `Ended`, `Refused` or `Failed`."""

    number: int
    model_id: str
    endpoint: str
    body: bytes
    delivered: tuple[int, ...]


class Stop(ToRuntime, frozen=True):
    """Give up an attempt or a session, which answers `Failed` as soon as it has been given up."""

    number: int


class FromRuntime(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What the runtime says."""


class Ready(FromRuntime, frozen=True):
    """The walls stand, the libraries are loaded; `mechanisms` names what makes the walls hold."""

    report: SandboxReport
    mechanisms: tuple[str, ...]


class NotReady(FromRuntime, frozen=True):
    """The runtime will not run; its process ends."""

    reason: Failure
    detail: str


class Loaded(FromRuntime, frozen=True):
    """A model stands in memory; `load_ms` is near zero if it already did."""

    model_id: str
    load_ms: int


class LoadFailed(FromRuntime, frozen=True):
    """A model does not stand in memory."""

    model_id: str
    reason: Failure
    detail: str


class Done(FromRuntime, frozen=True):
    """An attempt's output and what it took."""

    number: int
    payload: bytes
    prompt_tokens: Figure
    completion_tokens: Figure
    cpu_ms: Figure


class Piece(FromRuntime, frozen=True, gc=False):
    """Some of a session's answer."""

    number: int
    piece: SessionPiece


class Ended(FromRuntime, frozen=True):
    """A session's answer is whole; what it took, with what was delivered before."""

    number: int
    prompt_tokens: Figure
    completion_tokens: Figure
    cpu_ms: Figure


class Refused(FromRuntime, frozen=True):
    """A session's request can't be answered by the model; a code of `protocol.errors`."""

    number: int
    code: str
    message: str
    param: str | None


class Failed(FromRuntime, frozen=True):
    """An attempt has no output, or a session breaks off."""

    number: int
    reason: Failure
    detail: str


AnyToRuntime = Load | Run | Open | Stop
AnyFromRuntime = Ready | NotReady | Loaded | LoadFailed | Done | Piece | Ended | Refused | Failed

TO_RUNTIME: Final[msgspec.msgpack.Decoder[AnyToRuntime]] = msgspec.msgpack.Decoder(AnyToRuntime)
FROM_RUNTIME: Final[msgspec.msgpack.Decoder[AnyFromRuntime]] = msgspec.msgpack.Decoder(
    AnyFromRuntime
)
ENCODER: Final = msgspec.msgpack.Encoder()
