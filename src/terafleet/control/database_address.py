"""Reads the address of a database, and decides what of it may be shown."""

import re
from pathlib import Path

import msgspec

SQLITE = "sqlite://"
"""How the address of a file begins; its path follows."""

POSTGRESQL = "postgresql://"

ADVICE = f"Give {SQLITE}/path/to/record.db or {POSTGRESQL}user@host/database."
PASSWORD_ADVICE = "The password may be in PGPASSWORD or in ~/.pgpass; in an address write @ as %40."

# RFC 3986: what is special in an address does not stand in a user or a password as it is. An
# address of another form is not taken, since nobody could say which part of it is secret.
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^:@/?#,\[\]]*)(?::[0-9]+)?"
_POSTGRESQL = re.compile(
    r"postgresql://"
    r"(?:(?P<user>[^:@/?#]*)(?::[^@/?#]*)?@)?"
    rf"(?P<place>{_HOST}(?:,{_HOST})*(?:/[^@:/?#]*)?)"
    r"(?:\?[^@#]*)?"
)


class DatabaseAddressUnusable(Exception):
    """It is no address of a database that can be used here; the message shows nothing of it."""


class DatabaseAddress(msgspec.Struct, frozen=True):
    """Where a record is kept: in the file `path`, or in a PostgreSQL database where that is None.

    `shown` is the address without what may be secret.
    """

    url: str
    shown: str
    path: Path | None


def database_address(url: str) -> DatabaseAddress:
    """Read an address. Raises DatabaseAddressUnusable."""
    path = url.removeprefix(SQLITE)
    if path and path != url:
        return DatabaseAddress(url, url, Path(path))
    found = _POSTGRESQL.fullmatch(url)
    if found is not None:
        user = f"{found['user']}@" if found["user"] else ""
        return DatabaseAddress(url, f"{POSTGRESQL}{user}{found['place']}", None)
    if url.startswith(POSTGRESQL):
        raise DatabaseAddressUnusable("The address of the PostgreSQL database can't be read.")
    raise DatabaseAddressUnusable("This is no address of a SQLite or PostgreSQL database.")
