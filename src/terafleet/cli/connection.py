"""Which control plane a command speaks to, and with which API key."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import msgspec
import typer

from terafleet.cli.failure import CommandFailed
from terafleet.cli.words import ADVICE

if TYPE_CHECKING:
    from terafleet.sdk import AdminClient, FleetClient, TerafleetError

DATA_VARIABLE, URL_VARIABLE, KEY_VARIABLE = "TERAFLEET_DATA", "TERAFLEET_URL", "TERAFLEET_API_KEY"
URL_FILE, KEY_FILE = "url", "operator.key"
"""What a control plane writes into its data folder."""

_FILE_BYTES_MAX = 4096
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar=DATA_VARIABLE,
        metavar="DIR",
        help="The control plane's data folder.",
        show_default="~/.local/share/terafleet",
    ),
]


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """The options of commands that speak to a control plane."""

    url: Annotated[
        str,
        typer.Option(
            envvar=URL_VARIABLE,
            metavar="URL",
            help="Where the control plane is.",
            show_default="what stands in the data folder",
        ),
    ] = ""
    data: DataFolder = None


class Asking(Connection, frozen=True, kw_only=True):
    """The options of commands that print what a control plane says."""

    is_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False


class Access(msgspec.Struct, frozen=True):
    """Where to ask, and the secret of an API key."""

    url: str
    api_key: str


def data_folder(given: Path | None) -> Path:
    """The control plane's data folder: the given one, or the one of this person."""
    if given is not None:
        return given
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "terafleet"


def access(connection: Connection) -> Access:
    """Where to ask and with what. Raises CommandFailed.

    The operator's key of a data folder is for the control plane that wrote it, so it goes to the
    address that lies beside it and to this computer, and nowhere else.
    """
    folder = data_folder(connection.data)
    own_url = _kept(folder / URL_FILE)
    url = connection.url.strip() or own_url
    if not url:
        message = f"It is not said where the control plane is, and {folder} does not say it either."
        raise CommandFailed("url_missing", message, ADVICE["url_missing"])
    api_key = os.environ.get(KEY_VARIABLE, "").strip()
    if not api_key and (_is_same(url, own_url) or _is_loopback(url)):
        api_key = _kept(folder / KEY_FILE)
    if not api_key:
        message = f"There is no API key for {url}."
        raise CommandFailed("api_key_missing", message, ADVICE["api_key_missing"])
    return Access(url, api_key)


@contextlib.contextmanager
def admin_client(connection: Connection) -> Iterator["AdminClient"]:
    """The control plane as an operator sees it; its errors become CommandFailed."""
    from terafleet.sdk import AdminClient, TerafleetError

    found = access(connection)
    try:
        with AdminClient(found.url, found.api_key) as client:
            yield client
    except TerafleetError as error:
        raise failure_of(error) from error


@contextlib.contextmanager
def fleet_client(connection: Connection) -> Iterator["FleetClient"]:
    """The fleet as a customer sees it; errors become CommandFailed."""
    from terafleet.sdk import FleetClient, TerafleetError

    found = access(connection)
    try:
        with FleetClient(found.url, found.api_key) as client:
            yield client
    except TerafleetError as error:
        raise failure_of(error) from error


def failure_of(error: "TerafleetError") -> CommandFailed:
    """A failed request as the failure of a command."""
    return CommandFailed(error.code, error.message, ADVICE.get(error.code, ""))


def _kept(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_FILE_BYTES_MAX).strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise CommandFailed("file_unusable", f"{path}: {cause}.") from error


def _is_same(url: str, own_url: str) -> bool:
    return bool(own_url) and url.rstrip("/") == own_url.rstrip("/")


def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in _LOOPBACK
    except ValueError:
        return False
