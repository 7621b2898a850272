"""What the agent tells whoever looks at the car: one small file, written when something changed."""

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.attempts import AttemptFigures
from terafleet.agent.files import replace_file
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import Epoch, LeaseId, VehicleId
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal

STATUS_FILE = "status.json"
STATUS_S = 1.0
"""It is written at most so often."""

log: FilteringBoundLogger = structlog.get_logger()


class ModelStatus(msgspec.Struct, frozen=True):
    """A model on the car's disk, and whether it stands in the runtime's memory."""

    model_id: str
    name: str
    is_loaded: bool


class ReadingsStatus(msgspec.Struct, frozen=True):
    """The newest sample, in whole percent and degrees, so that noise is no change."""

    is_parked: bool | None
    is_driver_present: bool | None
    is_plugged_in: bool | None
    soc_percent: int | None
    compute_temperature_c: int | None


class AgentStatus(msgspec.Struct, frozen=True):
    """One look at the agent. `figures.energy_mwh` is estimated from processor time."""

    process_id: int
    boot_id: str
    agent_version: str
    vehicle_id: VehicleId
    name: str
    state: GuardState
    refusals: tuple[Refusal, ...]
    is_connected: bool
    epoch: Epoch
    lease_ids: tuple[LeaseId, ...]
    attempts: int
    receipts_waiting: int
    models: tuple[ModelStatus, ...]
    readings: ReadingsStatus | None
    figures: AttemptFigures
    at_ms: int = 0


class StatusFile:
    """The file; `look` makes a status without its time, which is set when it is written."""

    def __init__(
        self, path: Path, look: Callable[[], AgentStatus], now_ms: Callable[[], int]
    ) -> None:
        self._path = path
        self._look = look
        self._now_ms = now_ms
        self._written = b""

    def update(self) -> None:
        """Write the file anew if anything has changed. A disk that refuses it is only logged."""
        status = self._look()
        body = msgspec.json.encode(status)
        if body == self._written:
            return
        dated = msgspec.structs.replace(status, at_ms=self._now_ms())
        try:
            replace_file(self._path, msgspec.json.encode(dated), is_durable=False)
        except OSError as error:
            log.warning("status_not_written", cause=error.strerror)
        else:
            self._written = body


def readings_status(readings: Readings | None) -> ReadingsStatus | None:
    """The sample as people read it."""
    if readings is None:
        return None
    return ReadingsStatus(
        readings.is_parked,
        readings.is_driver_present,
        readings.is_plugged_in,
        _whole(readings.soc_percent),
        _whole(readings.compute_temperature_c),
    )


def _whole(value: float | None) -> int | None:
    """A sensor may also give what is no number."""
    return None if value is None or not math.isfinite(value) else round(value)


def read_status(data_folder: Path) -> AgentStatus | None:
    """What the agent of a data folder said last, or None where it said nothing readable."""
    try:
        return msgspec.json.decode((data_folder / STATUS_FILE).read_bytes(), type=AgentStatus)
    except (OSError, msgspec.MsgspecError):
        return None
