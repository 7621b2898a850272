"""Tells by the default route whether the link is metered, and where the computer stands."""

import fnmatch
import hashlib
import os
import struct
from collections.abc import Sequence

import msgspec

from terafleet.agent.adapters.vehicle.linux_files import read_text, whole
from terafleet.agent.linux_settings import MARK_CHARACTERS, LinuxSettings

METERED_NAMES = ("wwan*", "wwp*", "ppp*", "usb*", "rmnet*")
"""Modems, dial-up, and phones at a cable."""
METERED_DRIVERS = ("rndis_host", "ipheth", "cdc_mbim", "qmi_wwan", "huawei_cdc_ncm", "sierra_net")
"""The same whose links have other names (`enx…`)."""
COVERED_NAMES = ("tun*", "tap*", "wg*", "tailscale*", "zt*", "nordlynx*")
"""Tunnels: what carries them can't be seen."""

ELSEWHERE = "elsewhere"
"""A place that the owner has no label for."""

_UP, _ARP_COMPLETE = 0x1, 0x2
_ROUTE_WORDS, _ROUTE_6_WORDS, _ARP_WORDS = 8, 10, 6
_NO_ADDRESS = "00000000"


class Route(msgspec.Struct, frozen=True):
    """The way out: a link's name, and its router's IPv4 address or an empty text."""

    link: str
    gateway: str


def default_route(root: str = "") -> Route | None:
    """The default route of the least metric, IPv4 first; None where there is none."""
    found = []
    for line in (read_text(f"{root}/proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) < _ROUTE_WORDS or {words[1], words[7]} != {_NO_ADDRESS}:
            continue
        flags, metric, address = _hexadecimal(words[3]), whole(words[6]), _hexadecimal(words[2])
        if flags is not None and flags & _UP and metric is not None and address is not None:
            found.append((metric, words[0], _dotted(address)))
    if found:
        _, link, gateway = min(found)
        return Route(link, gateway)
    return _default_route_6(root)


def is_link_metered(settings: LinuxSettings, route: Route | None, root: str = "") -> bool | None:
    """Whether what is sent costs by the byte; None where the link can't be known.

    A phone's own Wi-Fi looks like any other: the owner tells those by place.
    """
    if settings.is_link_metered is not None:
        return settings.is_link_metered
    if route is None:
        return None
    if _fits(route.link, (*METERED_NAMES, *settings.metered_links)):
        return True
    if _driver(route.link, root) in METERED_DRIVERS:
        return True
    return None if _fits(route.link, COVERED_NAMES) else False


def place(settings: LinuxSettings, route: Route | None, root: str = "") -> str | None:
    """The owner's label of where the computer stands, by its router; see `LinuxSettings`."""
    if settings.place:
        return settings.place
    mark = gateway_mark(route, root) if settings.places else None
    return None if mark is None else settings.places.get(mark, ELSEWHERE)


def gateway_mark(route: Route | None, root: str = "") -> str | None:
    """A mark of the router on the way out, or None where none has answered yet.

    It is a digest of its hardware address, so that a settings file that is copied does not bear
    the address itself, which location services know. It is no secret: there are few addresses.
    """
    if route is None or not route.gateway:
        return None
    for line in (read_text(f"{root}/proc/net/arp") or "").splitlines()[1:]:
        words = line.split()
        if len(words) < _ARP_WORDS or (words[0], words[5]) != (route.gateway, route.link):
            continue
        flags = _hexadecimal(words[2].removeprefix("0x"))
        if flags is not None and flags & _ARP_COMPLETE:
            return hashlib.sha256(words[3].lower().encode()).hexdigest()[:MARK_CHARACTERS]
    return None


def _default_route_6(root: str) -> Route | None:
    found = []
    for line in (read_text(f"{root}/proc/net/ipv6_route") or "").splitlines():
        words = line.split()
        if len(words) < _ROUTE_6_WORDS or words[1] != "00" or words[9] == "lo":
            continue
        metric, flags = _hexadecimal(words[5]), _hexadecimal(words[8])
        if metric is not None and flags is not None and flags & _UP:
            found.append((metric, words[9]))
    return Route(min(found)[1], "") if found else None


def _driver(link: str, root: str) -> str:
    try:
        return os.path.basename(os.readlink(f"{root}/sys/class/net/{link}/device/driver"))
    except OSError:
        return ""


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _hexadecimal(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _dotted(address: int) -> str:
    """The kernel writes the four bytes as they lie in memory, read as a number of this computer.

    A link with only one other end needs no router, and has 0.
    """
    four = struct.pack("=I", address & 0xFFFFFFFF)
    return ".".join(map(str, four)) if address else ""
