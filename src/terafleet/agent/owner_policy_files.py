"""The owner policy from its three layers: the installer's, the fleet's, and the owner's own file.

The owner's file is laid over the other two, name by name: whoever has the car has the last word.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from terafleet.agent.files import replace_file
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_tables import PolicyFaults, laid_over, policy_from

OWNER_FILE = "owner.toml"
FLEET_FILE = "owner-fleet.json"
"""What the control plane set, as it came."""

POLICY_BYTES_MAX = 65_536

Stamp = tuple[int, int, int] | None


class PolicyRefused(msgspec.Struct, frozen=True):
    """What was written can't be used; each fault in words that a person can act on."""

    faults: tuple[str, ...]


class OwnerPolicyFiles:
    """The policy that holds. A layer that can't be read leaves the policy of before in force."""

    def __init__(self, data_folder: Path, installed: OwnerPolicy) -> None:
        """`installed` is the lowest layer; it came with the agent's settings."""
        self._owner_path = data_folder / OWNER_FILE
        self._fleet_path = data_folder / FLEET_FILE
        self._installed: Mapping[str, Any] = msgspec.to_builtins(installed)
        self._seen: tuple[Stamp, Stamp] | None = None
        self.policy = installed
        self.faults: tuple[str, ...] = ()

    def reload(self) -> bool:
        """Read the files again if they have changed; whether another policy holds from here on."""
        stamps = (_stamp(self._owner_path), _stamp(self._fleet_path))
        if stamps == self._seen:
            return False
        self._seen = stamps
        found = self._joined()
        if isinstance(found, PolicyRefused):
            self.faults = found.faults
            return False
        self.faults = ()
        is_other = found != self.policy
        self.policy = found
        return is_other

    def keep_of_fleet(self, body: bytes) -> None:
        """Keep what the control plane set, as JSON; it holds from the next `reload` on.

        What is no table is kept too: its faults are told, and nothing else is changed by it.
        Raises OSError.
        """
        if len(body) <= POLICY_BYTES_MAX and body != _read(self._fleet_path):
            replace_file(self._fleet_path, body)

    def _joined(self) -> OwnerPolicy | PolicyRefused:
        table = self._installed
        for path, read in ((self._fleet_path, _json), (self._owner_path, _toml)):
            try:
                body = _read(path)
                layer = read(body) if body else {}
            except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
                return PolicyRefused((f"{path.name}: {error}",))
            table = laid_over(table, layer)
        policy = policy_from(table)
        if isinstance(policy, PolicyFaults):
            return PolicyRefused(tuple(map(str, policy.faults)))
        return policy


def read_owner_file(path: Path) -> OwnerPolicy | PolicyRefused:
    """The policy that one file says by itself, with the defaults below it."""
    try:
        found = policy_from(_toml(_read(path, is_needed=True)))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return PolicyRefused((f"{path}: {reason}",))
    if isinstance(found, PolicyFaults):
        return PolicyRefused(tuple(map(str, found.faults)))
    return found


def _read(path: Path, *, is_needed: bool = False) -> bytes:
    """The file, or nothing where none is. Raises OSError, and ValueError if it is too large."""
    try:
        with path.open("rb") as file:
            body = file.read(POLICY_BYTES_MAX + 1)
    except FileNotFoundError:
        if is_needed:
            raise
        return b""
    if len(body) > POLICY_BYTES_MAX:
        raise ValueError(f"it is larger than {POLICY_BYTES_MAX} bytes")
    return body


def _toml(body: bytes) -> dict[str, Any]:
    return tomllib.loads(body.decode())


def _json(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(body, type=dict[str, Any])


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
