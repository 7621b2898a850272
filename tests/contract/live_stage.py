"""The live sessions of a gateway in a test."""

import itertools
import time

from terafleet.bus.ports import Bus
from terafleet.control.gateway.live.sessions import LiveSessions
from terafleet.core.ids import GatewayId
from terafleet.core.session_events import SessionSettings

GATEWAY = GatewayId("gateway1")
SETTINGS = SessionSettings()


def live_sessions(bus: Bus, settings: SessionSettings = SETTINGS) -> LiveSessions:
    """Sessions over a bus, with a clock of their own."""
    numbers = itertools.count(1)
    return LiveSessions(
        bus,
        GATEWAY,
        lambda: time.monotonic_ns() // 1_000_000,
        lambda: f"{next(numbers):024x}",
        settings,
    )
