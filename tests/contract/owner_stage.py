"""A status that an agent could have written, for tests of what its owner sees."""

import os
from typing import Any

import msgspec

from terafleet.agent.attempts import AttemptFigures
from terafleet.agent.meters import MODEL, MeterFigures
from terafleet.agent.status import (
    AgentStatus,
    CapsStatus,
    DayStatus,
    ModelStatus,
    ReadingsStatus,
    RefusalStatus,
)
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import Epoch, LeaseId, VehicleId
from terafleet.core.reasons import Refusal
from terafleet.core.standing import Ending, EndsBy
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE

AT_MS = 1_795_000_000_000
"""18 November 2026."""

UNPLUGGED = RefusalStatus(
    Refusal.UNPLUGGED, AT_MS - 5 * MS_PER_MINUTE, Ending(EndsBy.CAR, sensors=("is_plugged_in",))
)
LOW = RefusalStatus(
    Refusal.SOC_BELOW_FLOOR,
    AT_MS - MS_PER_HOUR,
    Ending(EndsBy.LEVEL, sensors=("soc_percent",), value=48, level=55.0),
)


def a_status(**changes: Any) -> AgentStatus:
    """A car that permits, with a day's work behind it, but for what is said."""
    status = AgentStatus(
        process_id=os.getpid(),
        boot_id="b",
        agent_version="0.1.0",
        vehicle_id=VehicleId("veh-abcdefghij"),
        name="Asta",
        state=GuardState.PERMITTING,
        refusals=(),
        is_connected=True,
        epoch=Epoch(3),
        lease_ids=(LeaseId(7), LeaseId(9)),
        attempts=1,
        receipts_waiting=0,
        models=(ModelStatus("m" * 64, "minilm", True),),
        readings=ReadingsStatus(True, False, True, 71, 38),
        figures=AttemptFigures(finished=5, answers=40, answers_failed=2),
        energy=MeterFigures(MODEL, None, 0, 0, 0),
        today=DayStatus(
            work_ms=2 * MS_PER_HOUR,
            attempts=34,
            computer_mwh=120_000,
            pack_mwh=80_000,
            pack_micro=20_000,
            electronics_ms=30 * MS_PER_MINUTE,
            electronics_micro=3_000,
            flash_bytes=12_000_000,
            flash_micro=50,
            link_bytes=34_000_000,
            asked_micro=90_000,
            earned_micro=95_000,
        ),
        earned_micro=12_400_000,
        caps=CapsStatus(5_000_000, 82 * MS_PER_MINUTE, 5_000_000_000, None),
        isolation_level="strong",
        page_url="http://127.0.0.1:8611/",
        at_ms=AT_MS,
    )
    return msgspec.structs.replace(status, **changes)


def refusing(*standing: RefusalStatus, **changes: Any) -> AgentStatus:
    """A car that refuses for these reasons."""
    refusals = tuple(one.refusal for one in standing)
    said = {"state": GuardState.REFUSING, "standing": standing, "refusals": refusals} | changes
    return a_status(**said)
