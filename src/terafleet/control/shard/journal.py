"""How the fleet's journal is written and read."""

from terafleet.core.effects import FleetEffect
from terafleet.core.events import SCHEMA, FleetEvent
from terafleet.engine.codec import Codec

FLEET_CODEC: Codec[FleetEvent, FleetEffect] = Codec(FleetEvent, FleetEffect, SCHEMA)
