"""A light client of the control plane: httpx and msgspec only."""

from terafleet.sdk.admin import AdminClient
from terafleet.sdk.chat import Ended, Message, Queued, Said, Sampling, Text
from terafleet.sdk.errors import TerafleetError
from terafleet.sdk.fleet import FleetClient

__all__ = [
    "AdminClient",
    "Ended",
    "FleetClient",
    "Message",
    "Queued",
    "Said",
    "Sampling",
    "TerafleetError",
    "Text",
]
