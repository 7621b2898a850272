"""What the owner allows, as one file says it: `owner.toml`, a table for each topic.

What each field means to a person is in docs/mechanisms/owner-policy.md.
"""

from typing import Literal, get_args

import msgspec

from terafleet.core.asking_price import AskingPrice, OwnerTerms, is_enough
from terafleet.core.hours import Departure, Window
from terafleet.core.reasons import Refusal
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE, divide_up
from terafleet.core.wear import WearCaps

WorkKind = Literal["live", "batch"]
WORK_KINDS: tuple[WorkKind, ...] = get_args(WorkKind)

ENDPOINTS = {
    "embeddings": "/v1/embeddings",
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
}
"""The endpoints by the short names that an owner may write."""

PATIENT = frozenset(
    {
        Refusal.DEPARTURE_SOON,
        Refusal.OUTSIDE_COMPUTE_HOURS,
        Refusal.OUTSIDE_NETWORK_HOURS,
        Refusal.AGENT_STOPPING,
    }
)
"""Refusals for which nobody waits at the car: work at hand may end by itself."""


class ChargePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The plug, the floor of the charge, and the charge that the next departure needs.

    `capacity_mwh` is the battery's, None if it is not known. `soc_percent_departure` is what must
    be there at a departure that only the car knows of, or at any time if nobody knows one.
    `spare_ms_min` and `_resume` are the two levels of the time that must be left over.
    """

    needs_plug: bool = True
    soc_percent_min: float | None = 50.0
    soc_percent_resume: float | None = None
    is_charge_first: bool = False
    soc_percent_departure: float = 80.0
    capacity_mwh: int | None = None
    spare_ms_min: int = 30 * MS_PER_MINUTE
    spare_ms_resume: int = 60 * MS_PER_MINUTE
    departures: tuple[Departure, ...] = ()
    departure_lead_ms: int = 15 * MS_PER_MINUTE
    departure_late_ms: int = 15 * MS_PER_MINUTE


class HoursPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the car may compute and use the network (no window is always), and when it is quiet.

    In quiet hours the fan may turn up to its limit; without one, or with 0, nothing runs.
    """

    compute: tuple[Window, ...] = ()
    network: tuple[Window, ...] = ()
    quiet: tuple[Window, ...] = ()
    quiet_fan_percent_max: float | None = None
    quiet_fan_percent_resume: float | None = None


class PlacePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Labels of places; none is anywhere."""

    allowed: tuple[str, ...] = ()


class LinkPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the work may use of the network; None is no limit."""

    allows_metered: bool = True
    day_bytes_max: int | None = None


class TemperaturePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits in °C; None is no limit.

    The computer's default lies below the 90 °C at which an hour of its electronics counts as an
    hour (`electronics_wear`), and above the 60 to 80 °C at which such computers work.
    """

    compute_c_max: float | None = 85.0
    compute_c_resume: float | None = None
    battery_c_max: float | None = None
    battery_c_max_resume: float | None = None
    battery_c_min: float | None = None
    battery_c_min_resume: float | None = None
    ambient_c_max: float | None = None
    ambient_c_resume: float | None = None


class PowerPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the computer's power, the low-voltage battery, and other programs; None is none."""

    compute_mw_max: int | None = None
    compute_mw_resume: int | None = None
    low_voltage_mv_min: int | None = None
    low_voltage_mv_resume: int | None = None
    others_percent_max: float | None = None
    others_percent_resume: float | None = None


class ActivityPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the car may be about while it computes; never an update, never service.

    A car that says nothing of these four is taken for one that does none of them, unless the
    policy `needs_all`.
    """

    allows_preconditioning: bool = False
    allows_sentry: bool = False
    needs_all: bool = False


class WorkPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which work is done, and for how much at the least; no names are all names.

    An endpoint is written by its path or by its name in `ENDPOINTS`.
    """

    kinds: tuple[WorkKind, ...] = WORK_KINDS
    endpoints: tuple[str, ...] = ()
    reward_micro_per_hour_min: int = 0


class YieldPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the car is given back, and when it is taken again.

    `finish_ms` is how long work at hand may go on if it ends within that (0: never wait),
    `stop_ms` how long the runtime may take to stop by itself, `suspend_ms` how long it may stay in
    memory off the processor where the car is likely to be free again, `release_ms` after how long
    a kill is repeated, `settle_ms` how long all must be well before work may begin, `stale_ms` how
    old a sample may be.
    """

    finish_ms: int = 0
    stop_ms: int = 0
    suspend_ms: int = 0
    release_ms: int = 2_000
    settle_ms: int = 60_000
    stale_ms: int = 30_000


class OwnerPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the owner allows.

    Analogue limits have two levels: beyond the first the car refuses, and it permits again only
    past the second, whose name ends in `resume`; where it is None, `limits` says which it is.
    `resume_at` ends a pause, see `written_time.moment_of`; empty is when the owner says so.
    """

    is_paused: bool = False
    resume_at: str = ""
    charge: ChargePolicy = ChargePolicy()
    hours: HoursPolicy = HoursPolicy()
    places: PlacePolicy = PlacePolicy()
    link: LinkPolicy = LinkPolicy()
    temperature: TemperaturePolicy = TemperaturePolicy()
    power: PowerPolicy = PowerPolicy()
    activity: ActivityPolicy = ActivityPolicy()
    wear: WearCaps = WearCaps()
    terms: OwnerTerms = OwnerTerms()
    work: WorkPolicy = WorkPolicy()
    giving_back: YieldPolicy = msgspec.field(default=YieldPolicy(), name="yield")


def endpoint_paths(policy: OwnerPolicy) -> tuple[str, ...]:
    """The endpoints at which the owner wants work, by their paths; none is all."""
    return tuple(ENDPOINTS.get(name, name) for name in policy.work.endpoints)


def allows_work(policy: OwnerPolicy, kind: str, endpoint: str) -> bool:
    """Whether the owner wants such work at all; what is not named where names are given is not."""
    paths = endpoint_paths(policy)
    return kind in policy.work.kinds and (not paths or endpoint in paths)


def is_reward_enough(
    policy: OwnerPolicy, asking: AskingPrice, reward_micro: int, duration_ms: int
) -> bool:
    """Whether a reward pays for what is asked and for the time; less is `REWARD_TOO_LOW`."""
    least_micro = divide_up(policy.work.reward_micro_per_hour_min * duration_ms, MS_PER_HOUR)
    return is_enough(reward_micro, asking) and reward_micro >= least_micro


def finish_ms(policy: OwnerPolicy, found: tuple[Refusal, ...]) -> int:
    """How long work at hand may go on when these refusals come, in ms; 0 is not at all.

    Only what is `PATIENT` waits: never an owner who is there, a car that moves, a limit that is
    passed, or a sensor that says nothing.
    """
    return policy.giving_back.finish_ms if PATIENT.issuperset(found) else 0
