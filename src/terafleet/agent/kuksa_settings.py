"""What is set for readings from a KUKSA databroker, and what is wrong with it."""

import ipaddress
import re

import msgspec

from terafleet.agent.readings_check import PLACE_CHARACTERS_MAX
from terafleet.core.units import MS_PER_MINUTE

ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")
SOCKET = re.compile(r"unix:/[\x21-\x7e]{1,100}")
CONTROL_UNIT = re.compile(r"[A-Za-z0-9]{1,32}(\.[A-Za-z0-9]{1,32}){0,3}")
PORT_MAX = 65_535
SILENCE_MS_MIN = 300
POWER_LEVEL_MAX = 10
"""`PowerOptimizeLevel` goes from 0 to 10 (VSS 6, include/PowerOptimize.vspec)."""
PLACES_MAX = 32
NETWORK_BYTES_MAX = 32
"""The longest name of a Wi-Fi network (IEEE 802.11-2020, 9.4.2.2)."""


class KuksaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the databroker is, and what its signals mean in this car.

    `address` is `host:port` or `unix:/path`. With a `ca_file` (PEM) the connection is TLS, and
    `server_name` is the name in the broker's certificate if it isn't the host. `token_file` holds
    a JSON Web Token; it is read at each connection. Without TLS only this computer is spoken to,
    unless `is_plaintext_allowed`. Readings are missing after `silence_ms` without the broker.

    `control_unit` is the instance of `Vehicle.ControlUnit` that computes. `power_level_max` is
    the highest `Vehicle.PowerOptimizeLevel` at which the car still lends. `places` are the
    owner's labels by the names of Wi-Fi networks.
    """

    address: str = "127.0.0.1:55555"
    ca_file: str = ""
    server_name: str = ""
    token_file: str = ""
    is_plaintext_allowed: bool = False
    silence_ms: int = 3_000
    control_unit: str = "Central"
    power_level_max: int = 0
    places: dict[str, str] = {}


def kuksa_faults(settings: KuksaSettings) -> list[str]:
    """What is wrong with the settings, in words a person can act on; empty when nothing is."""
    faults = []
    if not is_address(settings.address):
        faults.append("address must be host:port or unix:/path")
    elif not (settings.ca_file or settings.is_plaintext_allowed or is_local(settings.address)):
        faults.append(
            "address is not on this computer: name a ca_file, or set is_plaintext_allowed and "
            "let everybody in between read and change what the car says"
        )
    if not SILENCE_MS_MIN <= settings.silence_ms <= MS_PER_MINUTE:
        faults.append(f"silence_ms must lie within {SILENCE_MS_MIN} and {MS_PER_MINUTE}")
    if not CONTROL_UNIT.fullmatch(settings.control_unit):
        faults.append("control_unit must be a name such as Central")
    if not 0 <= settings.power_level_max <= POWER_LEVEL_MAX:
        faults.append(f"power_level_max must lie within 0 and {POWER_LEVEL_MAX}")
    return faults + _place_faults(settings.places)


def is_address(text: str) -> bool:
    """Whether a text is `host:port`, with a host's name or address, or `unix:/path`."""
    if SOCKET.fullmatch(text):
        return True
    found = ADDRESS.fullmatch(text)
    return found is not None and 1 <= int(found["port"]) <= PORT_MAX


def is_local(address: str) -> bool:
    """Whether what is sent to a good address stays on this computer."""
    found = ADDRESS.fullmatch(address)
    if found is None:
        return SOCKET.fullmatch(address) is not None
    host = found["host"].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _place_faults(places: dict[str, str]) -> list[str]:
    faults = []
    if len(places) > PLACES_MAX:
        faults.append(f"places must not be more than {PLACES_MAX}")
    if not all(0 < len(name.encode()) <= NETWORK_BYTES_MAX for name in places):
        faults.append(f"the names in places must have 1 to {NETWORK_BYTES_MAX} bytes")
    labels = places.values()
    if not all(0 < len(one) <= PLACE_CHARACTERS_MAX and one.isprintable() for one in labels):
        faults.append(f"the labels in places must have 1 to {PLACE_CHARACTERS_MAX} characters")
    return faults
