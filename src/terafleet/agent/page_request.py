"""Reads the head of a request to the owner's page, strictly; it knows no network.

After RFC 9112, of which it takes the least that browsers need: a head that may be read in two ways
is refused.
"""

import re
from http import HTTPStatus

import msgspec

HEAD_BYTES_MAX = 8 * 1_024
HEADERS_MAX = 64
METHODS = ("GET", "HEAD")

_TARGET_BYTES_MAX = 200
_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_LOOPBACK = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)


class PageRequest(msgspec.Struct, frozen=True):
    """What is asked for; `is_head` wants the answer without its body."""

    path: str
    is_head: bool


class RequestRefused(msgspec.Struct, frozen=True):
    """It gets no page, but this status."""

    status: HTTPStatus


def parse_head(head: bytes) -> PageRequest | RequestRefused:
    """What a head asks for, its empty line included.

    Only for names of this computer itself: a page of the web that lets its own name point to this
    computer would otherwise read the answer (DNS rebinding).
    """
    if len(head) > HEAD_BYTES_MAX:
        return RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    asked = _LINE.fullmatch(first)
    headers = _headers(lines)
    if asked is None or headers is None or not head.endswith(b"\r\n\r\n"):
        return RequestRefused(HTTPStatus.BAD_REQUEST)
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return RequestRefused(HTTPStatus.BAD_REQUEST)
    if not _LOOPBACK.fullmatch(headers.get("host", "")):
        return RequestRefused(HTTPStatus.MISDIRECTED_REQUEST)
    method, target = asked[1].decode(), asked[2]
    if method not in METHODS:
        return RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED)
    if len(target) > _TARGET_BYTES_MAX:
        return RequestRefused(HTTPStatus.REQUEST_URI_TOO_LONG)
    return PageRequest(target.decode(), method == "HEAD")


def _headers(lines: list[bytes]) -> dict[str, str] | None:
    """The headers by their small names; None where one is malformed or comes twice."""
    if len(lines) > HEADERS_MAX:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            return None
        name = found[1].decode().lower()
        if name in headers and name in ("host", "content-length", "transfer-encoding"):
            return None
        headers[name] = found[2].decode("latin-1").strip(" \t")
    return headers
