"""Signed, expiring addresses: who holds one may do the one thing that it names, for a while."""

import hmac
import re
from typing import Literal
from urllib.parse import parse_qsl, quote

Method = Literal["GET", "PUT"]

SAFE = "/?&=:~._-"
"""What stands unescaped in an address beside letters and digits."""

_NEEDS_NO_ESCAPE = re.compile(r"[A-Za-z0-9/?&=:~._-]*").fullmatch


def sign_address(secret: bytes, method: Method, path: str, expires_s: int) -> str:
    """The path with an expiry (seconds since 1970) and a signature over method, path and expiry.

    `path` begins with a slash, unescaped, and may end in a query.
    """
    # Millions of outputs get an address each: quoting is left out where it would change nothing.
    escaped = path if _NEEDS_NO_ESCAPE(path) else quote(path, safe=SAFE)
    joint = "&" if "?" in escaped else "?"
    expiring = f"{escaped}{joint}expires={expires_s}"
    return f"{expiring}&signature={_signature(secret, method, expiring)}"


def address_below(address: str, name: str) -> str:
    """The address of one thing in a signed folder: a path that ends in a slash."""
    path, _, query = address.partition("?")
    return f"{path}{name}?{query}"


def folder_fault(secret: bytes, method: Method, address: str, now_s: int) -> str | None:
    """What is wrong with an address in a signed folder, as `address_fault` says, or None."""
    path, _, query = address.partition("?")
    folder = path[: path.rfind("/") + 1]
    return address_fault(secret, method, f"{folder}?{query}", now_s)


def address_fault(secret: bytes, method: Method, address: str, now_s: int) -> str | None:
    """What is wrong with a signed address (`signature_wrong`, `address_expired`), or None."""
    expiring, separator, signature = address.rpartition("&signature=")
    if not separator:
        return "signature_wrong"
    if not hmac.compare_digest(_signature(secret, method, expiring).encode(), signature.encode()):
        return "signature_wrong"
    query = dict(parse_qsl(expiring.partition("?")[2]))
    return None if now_s <= int(query["expires"]) else "address_expired"


def _signature(secret: bytes, method: str, expiring: str) -> str:
    return hmac.digest(secret, f"{method} {expiring}".encode(), "sha256").hex()
