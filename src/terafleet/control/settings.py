"""What the operator sets for a control plane; read once."""

from pathlib import Path

import msgspec

from terafleet.control.gateway.canary import CanarySettings
from terafleet.control.gateway.context import GatewayLimits
from terafleet.control.shard.shard import ShardSettings


class ControlSettings(msgspec.Struct, frozen=True):
    """Where a control plane keeps its data, listens, and how it is reached.

    Without `bus_urls` it runs a NATS server of its own on `bus_listen_host` and
    `bus_listen_port` (0 takes a free one). `advertise_url` is how cars reach the gateway, and
    `bus_advertise_urls` how they reach the bus, where that differs from where these listen.
    `database_url` keeps the record elsewhere than in `data`: `sqlite:///path`, or
    `postgresql://user@host/database`, where the catalogue lies beside it. A gateway cuts and
    assembles `gateway_work_at_once` batches at a time; with 0 it leaves that to other gateways.
    With `is_metrics_open` everybody who reaches the gateway may read its metrics.
    """

    data: Path
    listen_host: str = "127.0.0.1"
    listen_port: int = 8600
    bus_listen_host: str = "127.0.0.1"
    bus_listen_port: int = 8622
    bus_urls: tuple[str, ...] = ()
    bus_advertise_urls: tuple[str, ...] = ()
    advertise_url: str = ""
    database_url: str = ""
    log_level: str = "info"
    gateway_work_at_once: int = 2
    limits: GatewayLimits = GatewayLimits()
    canary: CanarySettings = CanarySettings()
    is_metrics_open: bool = False
    shard: ShardSettings = ShardSettings()
