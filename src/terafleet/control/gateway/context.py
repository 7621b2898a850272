"""What every route of the gateway works with."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from terafleet.bus.ports import Bus, BusUnavailable, NoAnswer
from terafleet.control.gateway.live.sessions import LiveSessions
from terafleet.control.ports import Catalogue, Objects
from terafleet.protocol.manifest import SignedManifest
from terafleet.protocol.shard import (
    ENCODER,
    REPLY_DECODER,
    SHARD_SUBJECT,
    Answered,
    AnyQuestion,
    Reply,
)

R = TypeVar("R", bound=Reply)

QUESTION_TIMEOUT_MS = 10_000


class GatewayLimits(msgspec.Struct, frozen=True):
    """What customers may send; OpenAI's own limits."""

    file_bytes_max: int = 200 * 1024 * 1024
    file_requests_max: int = 50_000
    line_bytes_max: int = 1024 * 1024
    address_valid_s: int = 3_600


class ShardUnavailable(Exception):
    """The shard did not answer; the question may be asked again, questions are idempotent."""


class ShardRefused(Exception):
    """The shard refused, with a reason of `core.reasons.Refused` and words to it."""

    def __init__(self, answered: Answered) -> None:
        super().__init__(answered.refused, answered.detail)
        self.answered = answered


class GatewayContext(msgspec.Struct, frozen=True):
    """Ports and settings of one gateway.

    `now_ms` is the wall clock, `new_id` gives 24 random hex digits. `sign_manifest` signs with
    the operator's model key, `issue_credential(vehicle_id, public_key)` makes a bus credential
    (JWT, expiry in seconds since 1970), `is_storage_full` says that no new work may be taken.
    `live` runs the sessions of requests that are answered while the customer waits.
    """

    bus: Bus
    catalogue: Catalogue
    objects: Objects
    limits: GatewayLimits
    address_secret: bytes
    manifest_key: bytes
    bus_urls: tuple[str, ...]
    now_ms: Callable[[], int]
    new_id: Callable[[], str]
    sign_manifest: Callable[[bytes], SignedManifest]
    issue_credential: Callable[[str, str], tuple[str, int]]
    is_storage_full: Callable[[], bool]
    live: LiveSessions

    async def ask(self, question: AnyQuestion, expected: type[R]) -> R:
        """Ask the shard. Raises ShardUnavailable, or ShardRefused for a refusal."""
        try:
            body = await self.bus.request(
                SHARD_SUBJECT, ENCODER.encode(question), QUESTION_TIMEOUT_MS
            )
        except (NoAnswer, BusUnavailable) as fault:
            raise ShardUnavailable(str(fault)) from fault
        reply = REPLY_DECODER.decode(body)
        if isinstance(reply, Answered) and reply.refused is not None:
            raise ShardRefused(reply)
        assert isinstance(reply, expected), f"{type(reply)} is not {expected}"
        return reply
