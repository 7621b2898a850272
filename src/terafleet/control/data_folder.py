"""The folder that holds all of a control plane: its format, its secrets, where its parts lie."""

import os
import secrets
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terafleet.bus.credentials import OperatorKeys
from terafleet.control.gateway.keys import KEY_RANDOM_BYTES, key_secret

FORMAT = 1
"""The number of the folder's layout; one of another number is not touched."""

SECRET_BYTES = 32


class DataFolderUnknown(Exception):
    """The folder holds something else, or data of another version; nothing was changed."""


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
        """The secrets, made at the first start; each lies in a file that only its owner reads."""
        self.bus.mkdir(exist_ok=True, mode=0o700)
        bus_keys = self.bus / "operator.keys"
        if not bus_keys.exists():
            OperatorKeys.generate().save(bus_keys)
        address = _secret_file(self.path / "address.secret", secrets.token_bytes(SECRET_BYTES))
        manifest = _secret_file(self.path / "manifest.key", secrets.token_bytes(SECRET_BYTES))
        operator = _secret_file(
            self.operator_key, key_secret(secrets.token_bytes(KEY_RANDOM_BYTES)).encode()
        )
        return ControlSecrets(
            OperatorKeys.load(bus_keys),
            address,
            Ed25519PrivateKey.from_private_bytes(manifest),
            operator.decode().strip(),
        )


def _check_format(path: Path) -> None:
    if path.exists():
        found = path.read_text(encoding="utf-8").strip()
        if found != str(FORMAT):
            raise DataFolderUnknown(
                f"{path.parent} holds data of format {found}; this version reads format {FORMAT}"
            )
        return
    if any(path.parent.iterdir()):
        raise DataFolderUnknown(f"{path.parent} is not empty and not a data folder of terafleet")
    _write(path, f"{FORMAT}\n".encode())


def _secret_file(path: Path, fresh: bytes) -> bytes:
    if not path.exists():
        _write(path, fresh)
    return path.read_bytes()


def _write(path: Path, body: bytes) -> None:
    """Write a file whole or not at all, readable for its owner only."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
