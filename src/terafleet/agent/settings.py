"""What is set for one agent: a TOML file in its data folder, overridden by the command line."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from terafleet.agent.vehicle_settings import VehicleSettings, vehicle_faults
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_faults import policy_faults
from terafleet.core.policy_tables import PolicyFaults, laid_over, policy_from
from terafleet.protocol.model_rules import RUNTIMES

SETTINGS_FILE = "agent.toml"
SETTINGS_BYTES_MAX = 65_536
SLOTS_MAX = 64
PAGE_PORT = 8_611
PORT_MAX = 65_535


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one agent runs with.

    An empty `gateway_url` is the one of the enrolment. `memory_mb` is what the owner lends to the
    runtime, `models_mb_max` what all models together may take on the disk. `core_power_mw` is
    what one busy core draws: energy is estimated from it, not measured. `session_token_ms` is
    the least time between two tokens of a live session, for shows; 0 is as fast as they come.
    `page_port` is where the owner's page is, on this computer alone; 0 is no page.
    """

    data_folder: Path
    gateway_url: str = ""
    name: str = ""
    slots: int = 1
    runtime_threads: int = 1
    memory_mb: int = 2_048
    models_mb_max: int = 8_192
    runtimes: tuple[str, ...] = ("onnx",)
    core_power_mw: int = 5_000
    session_token_ms: int = 0
    vehicle: VehicleSettings = VehicleSettings()
    policy: OwnerPolicy = OwnerPolicy()
    log_file: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    page_port: int = PAGE_PORT

    @property
    def computer_mw(self) -> int:
        """What the computer draws for work while all slots are busy, at the most."""
        cores = min(os.cpu_count() or 1, self.slots * self.runtime_threads)
        return self.core_power_mw * cores


class SettingsRefused(msgspec.Struct, frozen=True):
    """The settings can't be used; each fault in words that a person can act on."""

    faults: tuple[str, ...]


def load_settings(
    data_folder: Path, overrides: Mapping[str, Any] | None = None
) -> AgentSettings | SettingsRefused:
    """The settings of `data_folder` with `overrides` laid over them, by the file's own names.

    Tables are overlaid name by name, at any depth. A file that is not there says nothing.
    """
    path = data_folder / SETTINGS_FILE
    try:
        with path.open("rb") as file:
            text = file.read(SETTINGS_BYTES_MAX + 1)
    except FileNotFoundError:
        text = b""
    except OSError as error:
        return SettingsRefused((f"{path} can't be read: {error.strerror}",))
    if len(text) > SETTINGS_BYTES_MAX:
        return SettingsRefused((f"{path} is larger than {SETTINGS_BYTES_MAX} bytes",))
    try:
        given = tomllib.loads(text.decode())
        joined = laid_over(given, overrides or {})
        policy = policy_from(joined.pop("policy", {}))
        if isinstance(policy, PolicyFaults):
            return SettingsRefused(tuple(f"policy.{fault}" for fault in policy.faults))
        # The runtime's process works in another folder, so paths must not depend on ours.
        joined |= {"data_folder": data_folder.absolute(), "policy": policy}
        settings = msgspec.convert(joined, AgentSettings, dec_hook=_path)
    except (ValueError, msgspec.ValidationError) as error:
        return SettingsRefused((f"{path}: {error}",))
    faults = settings_faults(settings)
    return SettingsRefused(tuple(faults)) if faults else settings


def settings_faults(settings: AgentSettings) -> list[str]:
    """What is wrong with settings, in words; empty when nothing is."""
    faults = [f"policy.{fault}" for fault in policy_faults(settings.policy)]
    if settings.gateway_url and not is_http_url(settings.gateway_url):
        faults.append("gateway_url must begin with http:// or https:// and name a host only")
    if not 1 <= settings.slots <= SLOTS_MAX:
        faults.append(f"slots must lie within 1 and {SLOTS_MAX}")
    if not 0 <= settings.page_port <= PORT_MAX:
        faults.append(f"page_port must lie within 0 and {PORT_MAX}")
    positive = ("runtime_threads", "memory_mb", "models_mb_max")
    faults += [f"{name} must be positive" for name in positive if getattr(settings, name) < 1]
    for name in ("core_power_mw", "session_token_ms"):
        if getattr(settings, name) < 0:
            faults.append(f"{name} must not be negative")
    unknown = sorted(set(settings.runtimes) - set(RUNTIMES))
    if unknown or not settings.runtimes:
        faults.append(f"runtimes must be some of {', '.join(RUNTIMES)}")
    elif "noop" in settings.runtimes and len(settings.runtimes) > 1:
        faults.append("the runtime noop, which is for tests, stands alone")
    return faults + [f"vehicle.{fault}" for fault in vehicle_faults(settings.vehicle)]


def is_http_url(text: str) -> bool:
    """Whether a text is the root of a web server: scheme and host, no path, query or password."""
    try:
        parts = urlsplit(text)
        is_port_good = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_bare = parts.path in ("", "/") and not parts.query and not parts.fragment
    is_named = bool(parts.hostname) and parts.username is None
    return parts.scheme in ("http", "https") and is_named and is_bare and is_port_good


def _path(wanted: type, value: object) -> object:
    """Only `data_folder` is a path, and it is one already."""
    assert wanted is Path
    assert isinstance(value, Path)
    return value
