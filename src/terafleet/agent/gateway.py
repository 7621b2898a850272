"""The agent's way to the gateway over HTTP: to enrol, to renew, and to fetch and put large blobs.

It maps every foreign exception of the way to a `GatewayFault`; nothing else here knows of them.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

import httpx
import msgspec

from terafleet.protocol.errors import ERRORS, ErrorReply

T = TypeVar("T")

GATEWAY_UNREACHABLE = "gateway_unreachable"
"""No answer: the network, the name or the certificate, or the answer broke off."""
GATEWAY_ODD = "gateway_odd"
"""An answer that none of our gateways gives."""
REPLY_TOO_LARGE = "reply_too_large"
ADDRESS_FOREIGN = "address_foreign"
"""An address that does not lead to our gateway; it was not followed."""

STATUS_OK, STATUS_PARTIAL, STATUS_UNSATISFIABLE = 200, 206, 416
STATUS_GOOD_MAX, STATUS_FAILED_MIN = 299, 500
REPLY_BYTES_MAX = 1024 * 1024
REQUEST_BYTES = 1_024
"""What the headers of a request and its answer take, about."""
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
# A request goes to the gateway that we know, whatever an address says: printable ASCII that
# begins with one slash.
_ADDRESS = re.compile(r"/(?!/)[!-~]*")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/(?:[0-9]+|\*)")
# Everything that httpx raises about the network, the answer, or an address it can't read.
_FOREIGN_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ssl.SSLError)


class GatewayFault(msgspec.Struct, frozen=True):
    """Why the gateway did not do what it was asked: its own code, or one of those above."""

    code: str
    detail: str

    @property
    def is_passing(self) -> bool:
        """Whether it may be otherwise at another time, with nothing changed here."""
        if self.code == GATEWAY_UNREACHABLE:
            return True
        return self.code in ERRORS and ERRORS[self.code].status >= STATUS_FAILED_MIN


class Sink(Protocol):
    """Where a download goes."""

    def begin(self, offset: int) -> None:
        """What follows stands from this byte on: the one that was asked for, or 0."""
        ...

    def write(self, chunk: bytes) -> None:
        """The next bytes."""
        ...


class Gateway:
    """One gateway; connections are opened when something is asked, and kept for a while."""

    def __init__(self, url: str) -> None:
        """`url` is its root, as `settings.is_http_url` says."""
        self._url = url.rstrip("/")
        self._client: httpx.AsyncClient | None = None
        self.traffic_bytes = 0
        """What was sent and received, headers estimated (`REQUEST_BYTES`)."""

    async def post(self, path: str, body: msgspec.Struct, reply: type[T]) -> T | GatewayFault:
        """Post a struct as JSON and read another one."""
        content = msgspec.json.encode(body)
        answer = await self._request("POST", path, content, REPLY_BYTES_MAX)
        if isinstance(answer, GatewayFault):
            return answer
        try:
            return msgspec.json.decode(answer, type=reply)
        except msgspec.MsgspecError as error:
            return GatewayFault(GATEWAY_ODD, f"{path}: {error}")

    async def fetch(self, address: str, bytes_max: int) -> bytes | GatewayFault:
        """The bytes at a signed address."""
        return await self._request("GET", address, None, bytes_max)

    async def put(self, address: str, body: bytes) -> GatewayFault | None:
        """Put bytes to a signed address; doing it again does no harm."""
        answer = await self._request("PUT", address, body, REPLY_BYTES_MAX)
        return answer if isinstance(answer, GatewayFault) else None

    async def download(self, address: str, offset: int, sink: Sink) -> GatewayFault | None:
        """Pour the bytes at an address into `sink`, from `offset` on where the gateway can.

        What was poured before a fault stays. Passes on the OSError of a sink that can't take more.
        """
        if _ADDRESS.fullmatch(address) is None:
            return _foreign(address)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            async with self._connected().stream("GET", address, headers=headers) as response:
                if response.status_code == STATUS_UNSATISFIABLE and offset:
                    # What we have is longer than what there is, so none of it can be trusted.
                    sink.begin(0)
                    return GatewayFault(GATEWAY_ODD, "there is less than we have of it")
                if response.status_code > STATUS_GOOD_MAX:
                    return _fault(response.status_code, await _bounded(response, REPLY_BYTES_MAX))
                self.traffic_bytes += REQUEST_BYTES
                begin = _first_byte(response)
                if begin not in (0, offset):
                    return GatewayFault(GATEWAY_ODD, f"bytes from {begin}, asked from {offset}")
                sink.begin(begin)
                async for chunk in _chunks(response):
                    self.traffic_bytes += len(chunk)
                    sink.write(chunk)
        except _FOREIGN_ERRORS as error:
            return _unreachable(error)
        return None

    async def close(self) -> None:
        """Close the connections; what is asked later opens fresh ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _request(
        self, method: str, address: str, body: bytes | None, bytes_max: int
    ) -> bytes | GatewayFault:
        if _ADDRESS.fullmatch(address) is None:
            return _foreign(address)
        try:
            async with self._connected().stream(method, address, content=body) as response:
                answer = await _bounded(response, bytes_max)
        except _FOREIGN_ERRORS as error:
            return _unreachable(error)
        self.traffic_bytes += REQUEST_BYTES + len(body or b"") + len(answer or b"")
        if not STATUS_OK <= response.status_code <= STATUS_GOOD_MAX:
            return _fault(response.status_code, answer)
        if answer is None:
            return GatewayFault(REPLY_TOO_LARGE, f"more than {bytes_max} bytes")
        return answer

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            # Bytes travel as they are: digests and ranges are over what the gateway stores.
            headers = {"Accept-Encoding": "identity"}
            # Without TLS the certificates of the world are not read, which spares 10 MB.
            self._client = httpx.AsyncClient(
                base_url=self._url,
                timeout=TIMEOUT,
                headers=headers,
                verify=self._url.startswith("https:"),
            )
        return self._client


async def _bounded(response: httpx.Response, bytes_max: int) -> bytes | None:
    """The body, or None if it is larger."""
    body = bytearray()
    async for chunk in _chunks(response):
        body += chunk
        if len(body) > bytes_max:
            return None
    return bytes(body)


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    # As they come: pieces of a size of our choice would be lost with the connection.
    async for chunk in response.aiter_raw():
        yield chunk
        # A fast network must not keep the loop from the owner's return.
        await asyncio.sleep(0)


def _first_byte(response: httpx.Response) -> int:
    """Where the answer begins in the whole; -1 where a part does not say of what."""
    if response.status_code != STATUS_PARTIAL:
        return 0
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return int(found[1]) if found is not None else -1


def _fault(status: int, answer: bytes | None) -> GatewayFault:
    """What a failed answer says, in the form of `protocol.errors` if it has it."""
    try:
        error = msgspec.json.decode(answer or b"", type=ErrorReply).error
    except msgspec.MsgspecError:
        error = None
    if error is not None and error.code in ERRORS:
        return GatewayFault(error.code, error.message)
    # What stands between us and the gateway fails in its own words, and most often passes.
    code = GATEWAY_UNREACHABLE if status >= STATUS_FAILED_MIN else GATEWAY_ODD
    return GatewayFault(code, f"HTTP status {status}")


def _unreachable(error: Exception) -> GatewayFault:
    return GatewayFault(GATEWAY_UNREACHABLE, str(error) or type(error).__name__)


def _foreign(address: str) -> GatewayFault:
    return GatewayFault(ADDRESS_FOREIGN, ascii(address[:200]))
