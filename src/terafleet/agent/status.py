"""What the agent tells whoever looks at the car: one small file, written when something changed."""

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.attempts import AttemptFigures
from terafleet.agent.files import replace_file
from terafleet.agent.meters import MeterFigures
from terafleet.core.day_use import link_bytes_on
from terafleet.core.guard import Guard
from terafleet.core.guard_accounts import CarSpending
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import Epoch, LeaseId, VehicleId
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.standing import Ending, StandingRefusal
from terafleet.core.wear import Wear
from terafleet.core.wear_price import ComputerTerms, electronics_price, flash_price

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


class RefusalStatus(msgspec.Struct, frozen=True):
    """A refusal that stands, since when, and what would end it."""

    refusal: Refusal
    since_ms: int
    ending: Ending


class DayStatus(msgspec.Struct, frozen=True):
    """What compute took of the car on the present day, what was asked for it, and what it earned.

    `computer_mwh` is at the computer, `pack_mwh` what left the battery for it; `pack_micro`,
    `electronics_micro` and `flash_micro` are what they lost of their worth. `asked_micro` is
    the least that the owner asks, `earned_micro` what the control plane says that it has earned,
    both in micro-units of the fleet's currency.
    """

    work_ms: int = 0
    attempts: int = 0
    computer_mwh: int = 0
    pack_mwh: int = 0
    pack_micro: int = 0
    electronics_ms: int = 0
    electronics_micro: int = 0
    flash_bytes: int = 0
    flash_micro: int = 0
    link_bytes: int = 0
    asked_micro: int = 0
    earned_micro: int = 0


class CapsStatus(msgspec.Struct, frozen=True):
    """What the owner lets compute take of the car a day; None is no cap."""

    pack_mwh: int = 0
    electronics_ms: int = 0
    flash_bytes: int = 0
    link_bytes: int | None = None


class AgentStatus(msgspec.Struct, frozen=True):
    """One look at the agent.

    `earned_micro` is all that the car has earned, as the control plane said last. `policy_faults`
    are what is wrong with a policy that was written; the one of before holds then.
    `isolation_level` is how well the runtime is walled in, empty until one ran. `utc_offset_ms` is
    what the place's clock is ahead of UTC; `page_url` is where the owner's page is, empty where
    there is none.
    """

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
    energy: MeterFigures
    standing: tuple[RefusalStatus, ...] = ()
    today: DayStatus = DayStatus()
    earned_micro: int = 0
    policy_faults: tuple[str, ...] = ()
    isolation_level: str = ""
    caps: CapsStatus | None = None
    utc_offset_ms: int = 0
    page_url: str = ""
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


class DayOfEarning:
    """What the car has earned on the present day of the place's clock.

    An agent that begins anew counts from what the control plane says first; the day's spending is
    kept by the guard.
    """

    def __init__(self) -> None:
        self._day: int | None = None
        self._earned_before_micro = 0

    def status(
        self, guard: Guard, earned_micro: int, computer: ComputerTerms, day: int
    ) -> DayStatus:
        """The day as people read it; `day` as `core.local_time.local_day` counts.

        What was used on a later day than that counts too: the clock was set back.
        """
        if earned_micro and self._day != day:
            self._day, self._earned_before_micro = day, earned_micro
        usage, spending = guard.usage, guard.spending
        spent = spending if spending.day >= day else CarSpending(day)
        worn = usage.wear.worn if usage.wear.day >= day else Wear()
        return DayStatus(
            work_ms=spent.work_ms,
            attempts=spent.attempts,
            computer_mwh=spent.computer_mwh,
            pack_mwh=worn.pack_mwh,
            pack_micro=worn.pack_micro,
            electronics_ms=worn.electronics_ms,
            electronics_micro=electronics_price(computer, worn.electronics_ms),
            flash_bytes=worn.flash_bytes,
            flash_micro=flash_price(computer, worn.flash_bytes),
            link_bytes=link_bytes_on(usage, day),
            asked_micro=spent.asked_micro,
            earned_micro=max(0, earned_micro - self._earned_before_micro),
        )


def caps_status(policy: OwnerPolicy) -> CapsStatus:
    """The owner's caps as people read them."""
    caps = policy.wear
    return CapsStatus(
        caps.pack_mwh, caps.electronics_ms, caps.flash_bytes, policy.link.day_bytes_max
    )


def refusal_status(standing: StandingRefusal, ending: Ending) -> RefusalStatus:
    """A refusal as people read it: the reading in whole units, so that noise is no change."""
    value = ending.value
    if value is not None:
        whole = round(value) if math.isfinite(value) else None
        ending = msgspec.structs.replace(ending, value=whole)
    return RefusalStatus(standing.refusal, standing.since_ms, ending)


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
