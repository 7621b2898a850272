"""The way to a control plane over HTTP; maps every foreign exception of that way, once."""

import contextlib
import secrets
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from terafleet.core.units import MS_PER_S
from terafleet.protocol.errors import ErrorReply
from terafleet.sdk.errors import (
    INVALID_URL,
    ODD,
    UNREACHABLE,
    AddressInvalid,
    AnswerOdd,
    KeyRefused,
    NotFound,
    RequestInvalid,
    TerafleetError,
    Unreachable,
    error_of,
)
from terafleet.sdk.local_files import CHUNK_BYTES, Progress, chunks_of

T = TypeVar("T")

REPLY_BYTES_MAX = 64 * 1024 * 1024
"""For every answer that is read as a whole."""

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
TIMEOUT_OF_FILES = httpx.Timeout(60.0, connect=10.0, read=600.0)
"""A large file is hashed and written to a disk before it is answered."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FOREIGN_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ssl.SSLError)
_STATUS_GOOD_MAX, _STATUS_BROKEN_MIN = 299, 500
_JSON, _EVENTS = "application/json", "text/event-stream"
_WAIT_HEADERS = (("retry-after-ms", 1), ("retry-after", MS_PER_S))
_WAIT_DIGITS_MAX = 9


class Gateway:
    """One gateway and the API key that is shown to it; the connections are kept until `close`.

    Every method raises TerafleetError and nothing else, but for the OSError of a local file.
    """

    def __init__(self, url: str, api_key: str) -> None:
        """`url` is the root of the gateway. Raises AddressInvalid, KeyRefused."""
        self.url = checked_url(url)
        headers = {"accept-encoding": "identity"}
        if api_key:
            headers["authorization"] = f"Bearer {_checked_key(api_key)}"
        # A proxy of the environment is for the world outside. Without TLS nobody has to be
        # trusted, and reading the roots of trust takes longer than most requests.
        parts = urlsplit(self.url)
        is_outside = parts.hostname not in _LOOPBACK
        needs_trust = is_outside or parts.scheme == "https"
        self._client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=TIMEOUT,
            trust_env=is_outside,
            verify=True if needs_trust else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, kind: type[T], query: Mapping[str, str | int] | None = None) -> T:
        """Read something."""
        return self._ask(self._client.build_request("GET", path, params=query), kind)

    def post(self, path: str, body: msgspec.Struct | None, kind: type[T]) -> T:
        """Make or change something; `body` goes as JSON."""
        if body is None:
            return self._ask(self._client.build_request("POST", path), kind)
        return self._send("POST", path, body, kind)

    def put(self, path: str, body: msgspec.Struct | Mapping[str, Any], kind: type[T]) -> T:
        """Say how something shall be; `body` goes as JSON."""
        return self._send("PUT", path, body, kind)

    def _send(
        self, method: str, path: str, body: msgspec.Struct | Mapping[str, Any], kind: type[T]
    ) -> T:
        content, headers = msgspec.json.encode(body), {"content-type": _JSON}
        request = self._client.build_request(
            method, path, content=content, headers=headers, timeout=TIMEOUT_OF_FILES
        )
        return self._ask(request, kind)

    def delete(self, path: str, kind: type[T]) -> T:
        """Remove something."""
        return self._ask(self._client.build_request("DELETE", path), kind)

    def find(self, path: str, kind: type[T]) -> T | None:
        """Read something that may not be there."""
        try:
            return self.get(path, kind)
        except NotFound:
            return None

    def put_file(
        self, path: str, file: BinaryIO, size_bytes: int, kind: type[T], progress: Progress
    ) -> T:
        """Send the bytes of a file as they are."""
        request = self._client.build_request(
            "PUT",
            path,
            content=chunks_of(file, size_bytes, progress),
            headers={"content-length": str(size_bytes), "content-type": "application/octet-stream"},
            timeout=TIMEOUT_OF_FILES,
        )
        return self._ask(request, kind)

    def post_form(
        self, path: str, form: "FileForm", size_bytes: int, kind: type[T], progress: Progress
    ) -> T:
        """Send a form with one file in it, without holding the file in memory."""
        head, tail = form.around()
        length = len(head) + size_bytes + len(tail)

        def content() -> Iterator[bytes]:
            yield head
            yield from chunks_of(form.file, size_bytes, progress)
            yield tail

        request = self._client.build_request(
            "POST",
            path,
            content=content(),
            headers={
                "content-length": str(length),
                "content-type": f"multipart/form-data; boundary={form.boundary}",
            },
            timeout=TIMEOUT_OF_FILES,
        )
        return self._ask(request, kind)

    @contextlib.contextmanager
    def streamed(self, path: str) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The size of something, -1 if that is not said, and its bytes in pieces."""
        with self._answered(self._client.build_request("GET", path)) as response:
            length = response.headers.get("content-length", "-1")
            yield int(length), self._chunks(response)

    @contextlib.contextmanager
    def told(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Iterator[Iterator[bytes]]:
        """Ask for a stream of events: its bytes as they come; leaving the block hangs up."""
        try:
            content = msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            message = f"The request has characters that are none: {error.reason}."
            raise RequestInvalid("invalid_value", message) from error
        kinds = {"content-type": _JSON, "accept": _EVENTS}
        request = self._client.build_request(
            "POST", path, content=content, headers={**headers, **kinds}
        )
        with self._answered(request) as response:
            kind = response.headers.get("content-type", "").partition(";")[0]
            if kind.strip().lower() != _EVENTS:
                raise AnswerOdd(ODD, f"{self.url} answers, but not with a stream of events.")
            yield self._as_they_come(response)

    def _as_they_come(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_raw()
        except _FOREIGN_ERRORS as error:
            cause = str(error) or type(error).__name__
            message = f"The answer of {self.url} broke off: {cause}."
            raise Unreachable(UNREACHABLE, message) from error

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_raw(CHUNK_BYTES)
        except _FOREIGN_ERRORS as error:
            raise self._unreachable(error) from error

    def _ask(self, request: httpx.Request, kind: type[T]) -> T:
        with self._answered(request) as response:
            body = self._whole(response)
        if kind is type(None):
            return None
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            message = f"{self.url} answers, but not as a control plane of this version: {error}."
            raise AnswerOdd(ODD, message) from error

    @contextlib.contextmanager
    def _answered(self, request: httpx.Request) -> Iterator[httpx.Response]:
        """A good answer to the request, its body not yet read."""
        try:
            response = self._client.send(request, stream=True)
        except _FOREIGN_ERRORS as error:
            raise self._unreachable(error) from error
        try:
            if response.status_code > _STATUS_GOOD_MAX:
                raise self._error(response)
            yield response
        finally:
            response.close()

    def _whole(self, response: httpx.Response) -> bytes:
        body = bytearray()
        for chunk in self._chunks(response):
            body += chunk
            if len(body) > REPLY_BYTES_MAX:
                raise AnswerOdd(ODD, f"{self.url} answers with more than {REPLY_BYTES_MAX} bytes.")
        return bytes(body)

    def _error(self, response: httpx.Response) -> TerafleetError:
        status = response.status_code
        try:
            error = msgspec.json.decode(self._whole(response), type=ErrorReply).error
        except msgspec.MsgspecError:
            # What stands between us and the gateway fails in its own words, and most often passes.
            message = f"{self.url} answers with HTTP status {status}"
            if status >= _STATUS_BROKEN_MIN:
                return Unreachable(UNREACHABLE, f"{message}; look whether the control plane runs.")
            return AnswerOdd(ODD, f"{message}, not as a control plane; look at the address.")
        wait_ms = _retry_after_ms(response.headers)
        return error_of(status, error.code, error.message, error.param, wait_ms)

    def _unreachable(self, error: Exception) -> Unreachable:
        cause = str(error) or type(error).__name__
        message = (
            f"{self.url} can't be reached: {cause}. "
            "Look whether the control plane runs there, and whether the address is right."
        )
        return Unreachable(UNREACHABLE, message)


class FileForm(msgspec.Struct, frozen=True):
    """A multipart form (RFC 7578) of text fields and one file; no text holds the `boundary`."""

    fields: dict[str, str]
    filename: str
    file: Any
    boundary: str

    @classmethod
    def of(cls, file: BinaryIO, filename: str, fields: dict[str, str]) -> "FileForm":
        """A form with a fresh boundary; a name's odd characters are escaped as browsers do."""
        for odd, escaped in (("\r", "%0D"), ("\n", "%0A"), ('"', "%22")):
            filename = filename.replace(odd, escaped)
        return cls(fields, filename, file, secrets.token_hex(16))

    def around(self) -> tuple[bytes, bytes]:
        """What stands before the bytes of the file, and what behind."""
        line = f"--{self.boundary}\r\nContent-Disposition: form-data; name="
        fields = [f'{line}"{name}"\r\n\r\n{text}\r\n' for name, text in self.fields.items()]
        file = f'{line}"file"; filename="{self.filename}"\r\n\r\n'
        head = "".join((*fields, file))
        return head.encode("utf-8", "replace"), f"\r\n--{self.boundary}--\r\n".encode()


def checked_url(url: str) -> str:
    """The root of a web server, without a slash at its end. Raises AddressInvalid."""
    plain = url.strip().rstrip("/")
    try:
        parts = urlsplit(plain)
        is_port_good = parts.port is None or parts.port > 0
    except ValueError:
        parts, is_port_good = urlsplit(""), False
    is_bare = not parts.query and not parts.fragment and parts.username is None
    is_named = parts.scheme in ("http", "https") and bool(parts.hostname)
    if is_named and is_bare and is_port_good and plain.isascii() and plain.isprintable():
        return plain
    message = f"{plain[:200]!a} is no address; write it as http://host:port."
    raise AddressInvalid(INVALID_URL, message)


def segment(text: str) -> str:
    """An id as one part of a path. Raises RequestInvalid for what would lead elsewhere."""
    if not text.strip("."):
        raise RequestInvalid("invalid_value", f"{text!a} is not the id of anything.")
    return quote(text, safe="")


def _retry_after_ms(headers: httpx.Headers) -> int:
    """When it is worth asking again; 0 where that is not said in milliseconds or seconds."""
    for name, unit_ms in _WAIT_HEADERS:
        text = headers.get(name, "")
        if text.isascii() and text.isdigit() and len(text) <= _WAIT_DIGITS_MAX:
            return int(text) * unit_ms
    return 0


def _checked_key(api_key: str) -> str:
    plain = api_key.strip()
    if plain.isascii() and plain.isprintable() and " " not in plain:
        return plain
    raise KeyRefused("invalid_api_key", "The API key is none; it looks like tf-… on one line.")
