"""One connection to a KUKSA databroker (gRPC, kuksa.val.v2): what it knows, says and changes.

Everything foreign ends here: an error of gRPC becomes `BrokerLost` with a cause, a message becomes
plain values by path. It doesn't know what the signals mean.
"""

import contextlib
import os
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from terafleet.agent.kuksa_settings import SOCKET, KuksaSettings
from terafleet.core.units import MS_PER_S

# gRPC's core writes each failed handshake to stderr by itself; the adapter tells of it once. The
# core reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio
from kuksa.val.v2 import val_pb2, val_pb2_grpc

MESSAGE_BYTES_MAX = 262_144
"""Some forty values are a few KiB."""
BUFFERED_CHANGES = 1_000
"""What a broker keeps for us at most (kuksa.val.v2); the oldest would be dropped beyond it."""
CA_BYTES_MAX = 262_144
TOKEN_BYTES_MAX = 16_384
TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
TEXTS_READ_MAX = 64
DETAIL_CHARACTERS_MAX = 200
NOT_READABLE = "no message of kuksa.val.v2"

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # A proxy of the environment must not come between the car and its own computer.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_retries", 0),
    # Else a new connection waits as long as gRPC thinks right after an older one's failure.
    ("grpc.use_local_subchannel_pool", 1),
)


class Cause(StrEnum):
    """Why the broker can't be asked."""

    UNREACHABLE = "unreachable"
    SILENT = "silent"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    STREAM_ENDED = "stream_ended"
    ANSWER_ODD = "answer_odd"
    SIGNALS_UNKNOWN = "signals_unknown"
    SIGNALS_CHANGED = "signals_changed"
    CA_UNUSABLE = "ca_unusable"
    TOKEN_UNUSABLE = "token_unusable"


CAUSES = {
    grpc.StatusCode.UNAVAILABLE: Cause.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Cause.SILENT,
    grpc.StatusCode.UNAUTHENTICATED: Cause.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Cause.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: Cause.SIGNALS_UNKNOWN,
}
"""What the status of a call says of the broker; any other is an odd answer."""
OF_THE_BROKER = (Cause.UNREACHABLE, Cause.SILENT, Cause.UNAUTHENTICATED)
"""What no other signal would be answered differently for."""


class BrokerLost(Exception):
    """The connection is of no use any more."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


class Survey(msgspec.Struct, frozen=True):
    """What a broker answered when it was asked for each signal: values, and why for the others."""

    said: dict[str, object]
    unread: dict[str, Cause]


class BrokerConnection:
    """Asks one broker; all methods raise BrokerLost, and `said` values are None where missing."""

    def __init__(self, channel: Any, metadata: Sequence[tuple[str, str]], reply_ms: int) -> None:
        """`metadata` goes with each call; what isn't answered within `reply_ms` is lost."""
        self._stub = val_pb2_grpc.VALStub(channel)
        self._metadata = metadata
        self._reply_s = reply_ms / MS_PER_S

    async def survey(self, paths: Sequence[str]) -> Survey:
        """Ask for each signal alone, since one that is unknown spoils a question for many.

        One after the other: a broker that is silent for one is lost with it.
        """
        said: dict[str, object] = {}
        unread: dict[str, Cause] = {}
        for path in paths:
            try:
                said[path] = await self._ask(path)
            except BrokerLost as lost:
                if lost.cause in OF_THE_BROKER:
                    raise
                unread[path] = lost.cause
        return Survey(said, unread)

    async def values(self, paths: Sequence[str]) -> dict[str, object]:
        """What each of some known signals says."""
        request = val_pb2.GetValuesRequest(signal_ids=[{"path": path} for path in paths])
        with _mapped():
            answer = await self._stub.GetValues(
                request, timeout=self._reply_s, metadata=self._metadata
            )
        if answer is None or len(answer.data_points) != len(paths):
            raise BrokerLost(Cause.ANSWER_ODD, "not one value for each signal")
        points = zip(paths, answer.data_points, strict=True)
        return {path: said_by(point) for path, point in points}

    async def changes(self, paths: Sequence[str]) -> AsyncGenerator[dict[str, object], None]:
        """What known signals say when it changes, and at the beginning; it ends with BrokerLost."""
        request = val_pb2.SubscribeRequest(signal_paths=paths, buffer_size=BUFFERED_CHANGES)
        with _mapped():
            async for answer in self._stub.Subscribe(request, metadata=self._metadata):
                if answer is None:
                    raise BrokerLost(Cause.ANSWER_ODD, NOT_READABLE)
                entries = answer.entries
                yield {path: said_by(entries[path]) for path in paths if path in entries}
        raise BrokerLost(Cause.STREAM_ENDED)

    async def _ask(self, path: str) -> object:
        request = val_pb2.GetValueRequest(signal_id={"path": path})
        with _mapped():
            answer = await self._stub.GetValue(
                request, timeout=self._reply_s, metadata=self._metadata
            )
        if answer is None:
            raise BrokerLost(Cause.ANSWER_ODD, NOT_READABLE)
        return said_by(answer.data_point)


@contextlib.asynccontextmanager
async def connected(settings: KuksaSettings, reply_ms: int) -> AsyncIterator[BrokerConnection]:
    """A connection by good settings whose files have whole paths; closed at the end.

    The files are read anew, so that a renewed token counts. Raises BrokerLost.
    """
    metadata = _metadata(settings)
    async with _channel(settings) as channel:
        yield BrokerConnection(channel, metadata, reply_ms)


def said_by(point: Any) -> object:
    """What a data point says: a plain value, a tuple of texts, or None. Other lists are None."""
    field = point.value.WhichOneof("typed_value")
    if field is None:
        return None
    said = getattr(point.value, field)
    if field == "string_array":
        return tuple(said.values[:TEXTS_READ_MAX])
    return said if isinstance(said, bool | int | float | str) else None


def _channel(settings: KuksaSettings) -> Any:
    address = settings.address
    target = address if SOCKET.fullmatch(address) else f"dns:{address}"
    if not settings.ca_file:
        return grpc.aio.insecure_channel(target, OPTIONS)
    named = (("grpc.ssl_target_name_override", settings.server_name),)
    options = OPTIONS + (named if settings.server_name else ())
    return grpc.aio.secure_channel(target, _credentials(settings.ca_file), options)


def _credentials(ca_file: str) -> Any:
    pem = _read(Path(ca_file), CA_BYTES_MAX, Cause.CA_UNUSABLE)
    try:
        # gRPC would only say that nothing can be reached.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise BrokerLost(Cause.CA_UNUSABLE, _detail(str(error))) from None
    return grpc.ssl_channel_credentials(pem.encode())


def _metadata(settings: KuksaSettings) -> tuple[tuple[str, str], ...]:
    if not settings.token_file:
        return ()
    token = _read(Path(settings.token_file), TOKEN_BYTES_MAX, Cause.TOKEN_UNUSABLE).strip()
    if not TOKEN.fullmatch(token):
        raise BrokerLost(Cause.TOKEN_UNUSABLE, "not a JSON Web Token")
    return (("authorization", f"Bearer {token}"),)


def _read(path: Path, bytes_max: int, cause: Cause) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(bytes_max + 1)
        if len(text) > bytes_max:
            raise BrokerLost(cause, f"larger than {bytes_max} bytes")
        return text.decode("ascii")
    except OSError as error:
        raise BrokerLost(cause, error.strerror or "") from None
    except UnicodeDecodeError:
        raise BrokerLost(cause, "not ASCII") from None


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        cause = CAUSES.get(error.code(), Cause.ANSWER_ODD)
        raise BrokerLost(cause, _detail(error.details() or "")) from None


def _detail(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text[:DETAIL_CHARACTERS_MAX])
