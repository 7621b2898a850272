"""What the runtime asks of every kind of model, and how a model says that it cannot."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from terafleet.agent.ports import SessionPiece
from terafleet.core.reasons import Failure
from terafleet.protocol.live import LiveFault

IsStopped = Callable[[], bool]
"""Asked between pieces of work: whether the attempt has been given up."""


class Answers(msgspec.Struct, frozen=True):
    """The answers to an attempt's requests, one line each, and what they counted."""

    payload: bytes
    prompt_tokens: int
    completion_tokens: int


TakePiece = Callable[[SessionPiece], None]
"""Gets each piece of a session; it may block for a while, and then the text grows no faster."""


class LiveRequest(msgspec.Struct, frozen=True):
    """A live request as `ports.SessionWork` has it, for one model."""

    endpoint: str
    body: bytes
    delivered: tuple[int, ...]


class LiveEnd(msgspec.Struct, frozen=True):
    """What a live answer counted, with the tokens that were delivered before."""

    prompt_tokens: int
    completion_tokens: int


class ModelFailed(Exception):
    """A model cannot be loaded, or cannot go on with an attempt or a session."""

    def __init__(self, reason: Failure, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class HostedModel(Protocol):
    """A model in memory; several threads may use it at once."""

    def serve(self, payload: bytes, endpoint: str, is_stopped: IsStopped) -> Answers:
        """Answer JSON Lines of request bodies for one endpoint. Raises ModelFailed."""
        ...

    def stream(
        self, request: LiveRequest, take: TakePiece, is_stopped: IsStopped
    ) -> LiveEnd | LiveFault:
        """Answer one live request in pieces, or say why it can't be. Raises ModelFailed."""
        ...


LoadModel = Callable[[Path, Mapping[str, int]], HostedModel]
"""Makes a model from its folder and options. Raises ModelFailed."""
