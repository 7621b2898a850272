"""What an owner may say about an ordinary Linux computer that takes part as if it were a car."""

import re
from collections.abc import Mapping

import msgspec

from terafleet.agent.readings_check import PLACE_CHARACTERS_MAX

IDLE_S = 180.0
MARK_CHARACTERS = 16
_MARK = re.compile(rf"[0-9a-f]{{{MARK_CHARACTERS}}}")


class LinuxSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the adapter `linux` sees its computer; nothing of this ever leaves it.

    Somebody is there until `idle_s` seconds have passed without input. `is_headless` says that
    the computer has no keyboard and no mouse that matter: then only its terminals tell.

    `place` is a fixed label of where it stands; without one `places` turns the mark of the
    network's router (`linux_network.gateway_mark`) into a label, and a router that is not in it
    is `elsewhere`. `is_link_metered` goes before what the link's name and driver say; names of
    links that cost by the byte stand in `metered_links`, where `*` fits anything.
    """

    idle_s: float = IDLE_S
    is_headless: bool = False
    place: str = ""
    places: Mapping[str, str] = {}
    is_link_metered: bool | None = None
    metered_links: tuple[str, ...] = ()


def linux_faults(settings: LinuxSettings) -> list[str]:
    """What is wrong with the settings, in words a person can act on; empty when nothing is."""
    faults = [] if settings.idle_s >= 0 else ["idle_s must not be negative"]
    faults += [
        f"places: {mark!r} must be {MARK_CHARACTERS} hexadecimal digits"
        for mark in settings.places
        if not _MARK.fullmatch(mark)
    ]
    labels = [settings.place, *settings.places.values()]
    faults += [
        f"place: {label!r} must be up to {PLACE_CHARACTERS_MAX} printable characters"
        for label in labels
        if len(label) > PLACE_CHARACTERS_MAX or not label.isprintable()
    ]
    return faults
