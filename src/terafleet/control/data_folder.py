"""The folder that holds all of a control plane: its format, its secrets, where its parts lie."""

import contextlib
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terafleet.bus.credentials import KeyFileUnsafe, KeyInvalid, OperatorKeys
from terafleet.control.gateway.keys import KEY_PREFIX, KEY_RANDOM_BYTES, key_secret

FORMAT = 2
"""The number of the folder's layout; one of another number is not touched."""

SECRET_BYTES = 32
NEW_ENDING = ".new"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""What anybody but the owner of a file may do with it."""

FORMAT_BYTES_MAX = 64
SECRET_BYTES_MAX = 4096
"""More than is ever written; a longer file is not ours."""

_OPERATOR_KEY = re.compile(re.escape(KEY_PREFIX) + "[A-Za-z0-9_-]{43}")
"""What `key_secret` makes."""


class DataFolderUnknown(Exception):
    """The folder holds something else, data of another version, or a secret that is not whole.

    Nothing of it was changed.
    """


class DataFolderInUse(DataFolderUnknown):
    """Another process has the folder open."""


class ControlSecrets(msgspec.Struct, frozen=True):
    """What only this control plane knows."""

    bus: OperatorKeys
    address_secret: bytes
    manifest_key: Ed25519PrivateKey
    operator_key: str


class DataFolder:
    """A control plane's folder; making it is safe to do again.

    It belongs to the process that opened it until that process ends, also if it is killed.
    """

    def __init__(self, path: Path) -> None:
        """Open or make. Raises DataFolderUnknown, DataFolderInUse, OSError."""
        self.path = path
        self.record = path / "record.db"
        self.catalogue = path / "catalogue.db"
        self.objects = path / "objects"
        self.bus = path / "bus"
        self.url = path / "url"
        self.operator_key = path / "operator.key"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _take(path / "format")

    def secrets(self) -> ControlSecrets:
        """The secrets, made at the first start; each lies in a file that only its owner reads.

        Raises OSError, and DataFolderUnknown for one that is not whole, since an empty secret signs
        for everybody, or that others can read.
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


def _take(path: Path) -> None:
    """Take a folder for this process by its file `format`, which is written in an empty one."""
    names = {beside.name for beside in path.parent.iterdir()}
    # An empty file alone is what a first start leaves that was cut short.
    is_first = names <= {path.name} and not (names and path.stat().st_size)
    if not is_first and path.name not in names:
        raise DataFolderUnknown(f"{path.parent} is not empty and not a data folder of terafleet")
    # A plain lock of the process rather than of the open file: forked children, which write
    # snapshots, do not keep it when their parent dies. It is lost when any descriptor of the file
    # is closed, so this one never is.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _lock(descriptor, path.parent)
        if is_first:
            _begin(descriptor, path.parent)
        _check_format(os.pread(descriptor, FORMAT_BYTES_MAX, 0), path)
    except BaseException:
        os.close(descriptor)
        raise


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as fault:
        raise DataFolderInUse(f"another control plane runs on {folder}") from fault


def _begin(descriptor: int, folder: Path) -> None:
    """Make an empty folder ours."""
    # Who may not do this has a folder of somebody else, who said with its mode what it is for.
    with contextlib.suppress(PermissionError):
        folder.chmod(0o700)
    os.pwrite(descriptor, f"{FORMAT}\n".encode(), 0)
    os.fsync(descriptor)
    _keep_names(folder)


def _check_format(body: bytes, path: Path) -> None:
    found = body.strip()
    if found == str(FORMAT).encode():
        return
    if not re.fullmatch(rb"[0-9]{1,9}", found):
        raise DataFolderUnknown(f"{path} is damaged; put it back from a copy")
    raise DataFolderUnknown(
        f"{path.parent} holds data of format {found.decode()}; this version reads format {FORMAT}"
    )


def _secret_bytes(path: Path) -> bytes:
    body = _kept(path, secrets.token_bytes(SECRET_BYTES))
    # Some file systems leave zeros where a power cut lost what was written.
    if len(body) != SECRET_BYTES or not any(body):
        raise DataFolderUnknown(f"{path} is damaged; put it back from a copy")
    return body


def _operator_key(path: Path) -> str:
    fresh = key_secret(secrets.token_bytes(KEY_RANDOM_BYTES))
    found = _kept(path, fresh.encode()).decode(errors="replace").strip()
    if not _OPERATOR_KEY.fullmatch(found):
        raise DataFolderUnknown(f"{path} holds no API key; remove it and a fresh one is made")
    return found


def _kept(path: Path, fresh: bytes) -> bytes:
    if not path.exists():
        _write(path, fresh)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & OTHERS:
            raise DataFolderUnknown(f"{path} must be readable by its owner only (chmod 600)")
        return file.read(SECRET_BYTES_MAX)


def _write(path: Path, body: bytes) -> None:
    """Write a file whole or not at all, readable for its owner only."""
    temporary = path.with_name(path.name + NEW_ENDING)
    # What an earlier start left half done may be readable for others, or lead elsewhere.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _keep_names(path.parent)


def _keep_names(folder: Path) -> None:
    """Let the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
