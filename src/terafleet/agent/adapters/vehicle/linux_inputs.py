"""Decides whether somebody uses the computer, by counters that move with each touch.

It needs no X, no Wayland and no rights: no input device is ever opened, as who can read a
keyboard reads passwords. (The times of the files in `/dev/input` say nothing: the kernel does not
change them when an event is read.)
"""

import os
import re
from collections.abc import Iterator, Sequence

import msgspec

from terafleet.agent.adapters.vehicle.linux_files import (
    names_in,
    read_text,
    read_whole,
    read_word,
    whole,
)
from terafleet.core.units import MS_PER_S

EV_OF_HANDS = 1 << 0x02 | 1 << 0x03 | 1 << 0x14
"""Kinds of events of mice (EV_REL), touch surfaces (EV_ABS), and keyboards, whose keys repeat
(EV_REP); buttons and lids have none of them (linux/input-event-codes.h)."""

BUS_USB, BUS_VIRTUAL, BUS_I8042, BUS_I2C, BUS_HOST, BUS_RMI, BUS_CEC = (3, 6, 17, 24, 25, 29, 30)
"""Where an input device hangs (linux/input.h)."""
BUSES_UNASKED = (BUS_VIRTUAL, BUS_HOST, BUS_CEC)
"""Devices that programs make, keys of the case, and a television's remote."""

_BUS = re.compile(r"^I: Bus=([0-9a-f]{4}) ", re.MULTILINE)
_FOLDER = re.compile(r"^S: Sysfs=(/devices/\S+)$", re.MULTILINE)
_EVENTS = re.compile(r"^B: EV=([0-9a-f]{1,16})$", re.MULTILINE)

Counters = dict[str, int | None]
"""What moves with each touch; None is a device whose touches can't be counted."""


class InputDevice(msgspec.Struct, frozen=True):
    """A keyboard, mouse or touch surface; `folder` is its place below `/sys`."""

    bus: int
    folder: str


class Presence:
    """Watches the counters. To start counts as input: what was before can't be known.

    A USB device counts its transfers (`urbnum`), one for each report; the keyboard and the
    touchpad of a laptop have interrupts of their own; and the file of a terminal has the time of
    its last input, in steps of 8 s. What hangs elsewhere, as on Bluetooth, can't be told from
    what nobody touches: while it is there, presence is missing.
    """

    def __init__(self, idle_s: float, *, is_headless: bool, root: str = "") -> None:
        """Headless, only terminals are looked at."""
        self._idle_ms = round(idle_s * MS_PER_S)
        self._is_headless = is_headless
        self._root = root
        self._devices = InputDevices(root)
        self._seen: Counters | None = None
        self._input_at_ms = 0

    def is_driver_present(self, now_ms: int) -> bool | None:
        """Whether there was input within the last `idle_s`; None where nothing can be told."""
        counters = terminal_counters(self._root)
        can_tell = self._is_headless
        if not self._is_headless:
            devices = self._devices.counters()
            can_tell = bool(devices) and None not in devices.values()
            counters |= devices
        if counters != self._seen:
            # A device or a terminal that comes or goes is somebody's doing too.
            self._seen, self._input_at_ms = counters, now_ms
        if not can_tell:
            return None
        return now_ms - self._input_at_ms < self._idle_ms


def terminal_counters(root: str) -> Counters:
    """When each terminal was last typed into, be it a window or a login from afar."""
    found: Counters = {}
    try:
        with os.scandir(f"{root}/dev/pts") as entries:
            for entry in entries:
                if entry.name.isdigit():
                    found[f"pts/{entry.name}"] = entry.stat().st_atime_ns
    except OSError:
        # Without terminals nobody types into one; one that closes at this moment shows next time.
        return found
    return found


class InputDevices:
    """The counters of all keyboards, mice and touch surfaces.

    Where they stand is found out anew when the list of devices changes, or one can't be read.
    """

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._listed: str | None = None
        self._files: dict[str, Sequence[str]] = {}

    def counters(self) -> Counters:
        """How often each was touched, by the folders of the devices."""
        listed = read_text(f"{self._root}/proc/bus/input/devices") or ""
        if listed != self._listed:
            self._files = {one.folder: self._files_of(one) for one in devices_for_hands(listed)}
        found = {folder: _sum(files) for folder, files in self._files.items()}
        self._listed = None if None in found.values() else listed
        return found

    def _files_of(self, device: InputDevice) -> Sequence[str]:
        """The files that count for a device; none where it can't be told."""
        sys = f"{self._root}/sys"
        if device.bus == BUS_USB:
            folder = device.folder
            while folder.count("/") > 1:
                if read_whole(f"{sys}{folder}/urbnum") is not None:
                    return [f"{sys}{folder}/urbnum"]
                folder = folder.rpartition("/")[0]
            return []
        interrupts = [
            f"{sys}/kernel/irq/{number}" for number in names_in(f"{sys}/kernel/irq") or ()
        ]
        return [
            f"{folder}/per_cpu_count"
            for folder in interrupts
            if _is_of(device, (read_word(f"{folder}/actions") or "").split(","))
        ]


def devices_for_hands(listed: str) -> Iterator[InputDevice]:
    """Those of `/proc/bus/input/devices` that hands use."""
    for block in listed.split("\n\n"):
        bus, folder, events = _BUS.search(block), _FOLDER.search(block), _EVENTS.search(block)
        if bus is None or folder is None or events is None:
            continue
        device = InputDevice(int(bus[1], 16), folder[1])
        is_for_hands = bool(int(events[1], 16) & EV_OF_HANDS)
        if is_for_hands and device.bus not in BUSES_UNASKED and ".." not in device.folder:
            yield device


def _is_of(device: InputDevice, takers: Sequence[str]) -> bool:
    """Whether an interrupt is a device's own, by the names of those who take it."""
    if device.bus == BUS_I8042:
        return "i8042" in takers
    if device.bus == BUS_RMI:
        return any(name.startswith("rmi4") for name in takers)
    # The interrupt bears the name of the client: `i2c-ELAN0676:00` is `ELAN0676:00`.
    parts = [part.removeprefix("i2c-") for part in device.folder.split("/")]
    return device.bus == BUS_I2C and any(name in parts for name in takers)


def _sum(files: Sequence[str]) -> int | None:
    """All counts in all files; an interrupt has one for each processor."""
    counts = [whole(count) for path in files for count in (read_text(path) or "").split(",")]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
