"""The folder that holds all of a control plane: its format, its secrets, where its parts lie."""

import os
import secrets
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terafleet.bus.credentials import KeyFileUnsafe, KeyInvalid, OperatorKeys
from terafleet.control.gateway.keys import KEY_PREFIX, KEY_RANDOM_BYTES, key_secret

FORMAT = 1
"""The number of the folder's layout; one of another number is not touched."""

SECRET_BYTES = 32
NEW_ENDING = ".new"


class DataFolderUnknown(Exception):
    """The folder holds something else, data of another version, or a secret that is not whole.

    Nothing of it was changed.
    """


class ControlSecrets(msgspec.Struct, frozen=True):
    """What only this control plane knows."""

    bus: OperatorKeys
    address_secret: bytes
    manifest_key: Ed25519PrivateKey
    operator_key: str


class DataFolder:
    """A control plane's folder; making it is safe to do again."""

    def __init__(self, path: Path) -> None:
        """Open or make. Raises DataFolderUnknown, OSError."""
        self.path = path
        self.record = path / "record.db"
        self.catalogue = path / "catalogue.db"
        self.objects = path / "objects"
        self.bus = path / "bus"
        self.url = path / "url"
        self.operator_key = path / "operator.key"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_format(path / "format")

    def secrets(self) -> ControlSecrets:
        """The secrets, made at the first start; each lies in a file that only its owner reads.

        Raises DataFolderUnknown for one that is not whole: an empty secret signs for everybody.
        """
        self.bus.mkdir(exist_ok=True, mode=0o700)
        bus_keys = self.bus / "operator.keys"
        if not bus_keys.exists():
            OperatorKeys.generate().save(bus_keys)
        address = _secret_bytes(self.path / "address.secret")
        manifest = _secret_bytes(self.path / "manifest.key")
        try:
            keys = OperatorKeys.load(bus_keys)
        except (KeyFileUnsafe, KeyInvalid) as fault:
            raise DataFolderUnknown(f"{bus_keys}: {fault}") from fault
        operator = _operator_key(self.operator_key)
        return ControlSecrets(
            keys, address, Ed25519PrivateKey.from_private_bytes(manifest), operator
        )


def _check_format(path: Path) -> None:
    if path.exists():
        found = path.read_text(encoding="utf-8").strip()
        if found != str(FORMAT):
            raise DataFolderUnknown(
                f"{path.parent} holds data of format {found}; this version reads format {FORMAT}"
            )
        return
    unfinished = path.name + NEW_ENDING
    if any(beside.name != unfinished for beside in path.parent.iterdir()):
        raise DataFolderUnknown(f"{path.parent} is not empty and not a data folder of terafleet")
    _write(path, f"{FORMAT}\n".encode())


def _secret_bytes(path: Path) -> bytes:
    body = _kept(path, secrets.token_bytes(SECRET_BYTES))
    if len(body) != SECRET_BYTES:
        raise DataFolderUnknown(f"{path} is damaged; put it back from a copy")
    return body


def _operator_key(path: Path) -> str:
    fresh = key_secret(secrets.token_bytes(KEY_RANDOM_BYTES))
    found = _kept(path, fresh.encode()).decode(errors="replace").strip()
    if len(found) != len(fresh) or not found.startswith(KEY_PREFIX):
        raise DataFolderUnknown(f"{path} holds no API key; remove it and a fresh one is made")
    return found


def _kept(path: Path, fresh: bytes) -> bytes:
    if not path.exists():
        _write(path, fresh)
    return path.read_bytes()


def _write(path: Path, body: bytes) -> None:
    """Write a file whole or not at all, readable for its owner only."""
    temporary = path.with_name(path.name + NEW_ENDING)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
