"""Every refusal and every ending, by name.

A reason is stored and sent as its value; a name once given keeps its meaning.
"""

from enum import StrEnum


class Refusal(StrEnum):
    """Why a car does not compute: shown to its owner, and to the fleet."""

    READING_MISSING = "reading_missing"
    READING_STALE = "reading_stale"
    NOT_PARKED = "not_parked"
    DRIVER_PRESENT = "driver_present"
    DEPARTURE_SOON = "departure_soon"
    UPDATE_PENDING = "update_pending"
    SERVICE_MODE = "service_mode"
    PRECONDITIONING = "preconditioning"
    SENTRY = "sentry"
    UNPLUGGED = "unplugged"
    SOC_BELOW_FLOOR = "soc_below_floor"
    CHARGE_FIRST = "charge_first"
    LOW_VOLTAGE = "low_voltage"
    TEMPERATURE_COMPUTE = "temperature_compute"
    TEMPERATURE_BATTERY = "temperature_battery"
    TEMPERATURE_AMBIENT = "temperature_ambient"
    POWER_CAP = "power_cap"
    OTHERS_BUSY = "others_busy"
    OUTSIDE_COMPUTE_HOURS = "outside_compute_hours"
    OUTSIDE_NETWORK_HOURS = "outside_network_hours"
    QUIET_HOURS = "quiet_hours"
    PLACE_NOT_ALLOWED = "place_not_allowed"
    METERED_LINK = "metered_link"
    DATA_CAP = "data_cap"
    WEAR_BUDGET = "wear_budget"
    REWARD_TOO_LOW = "reward_too_low"
    OWNER_PAUSED = "owner_paused"
    SETTLING = "settling"
    YIELDING = "yielding"
    AGENT_STARTING = "agent_starting"
    AGENT_STOPPING = "agent_stopping"

    @classmethod
    def _missing_(cls, value: object) -> "Refusal | None":
        """A record may hold a name that was given up for a narrower one."""
        return cls.TEMPERATURE_COMPUTE if value == "temperature_high" else None


class LeaseEnding(StrEnum):
    """Why a lease ended before its work was done."""

    OWNER_RETURNED = "owner_returned"
    CONDITIONS_CHANGED = "conditions_changed"
    AGENT_RESTARTED = "agent_restarted"
    AGENT_STOPPED = "agent_stopped"
    LINK_SILENT = "link_silent"
    LEASE_UNKNOWN = "lease_unknown"
    MODEL_UNAVAILABLE = "model_unavailable"
    NOT_PERMITTED = "not_permitted"
    WORK_UNWANTED = "work_unwanted"
    OVERDUE = "overdue"
    BATCH_CANCELLED = "batch_cancelled"
    BATCH_EXPIRED = "batch_expired"
    VEHICLE_REMOVED = "vehicle_removed"
    PREEMPTED = "preempted"
    ATTEMPT_FAILED = "attempt_failed"


class Failure(StrEnum):
    """Why an attempt gave no result although the car was there; counts against car or unit."""

    RUNTIME_CRASHED = "runtime_crashed"
    RUNTIME_REFUSED = "runtime_refused"
    OUT_OF_MEMORY = "out_of_memory"
    MODEL_UNAVAILABLE = "model_unavailable"
    INPUT_UNAVAILABLE = "input_unavailable"
    INPUT_DAMAGED = "input_damaged"
    OUTPUT_INCOMPLETE = "output_incomplete"
    STOPPED = "stopped"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"


class UnitEnding(StrEnum):
    """Why a work unit has no result."""

    FAILED_ON_SEVERAL_VEHICLES = "failed_on_several_vehicles"
    FAILED_TOO_OFTEN = "failed_too_often"
    BATCH_CANCELLED = "batch_cancelled"
    BATCH_EXPIRED = "batch_expired"


class Refused(StrEnum):
    """Why admission does not take a request."""

    MODEL_UNKNOWN = "model_unknown"
    ENDPOINT_UNSUPPORTED = "endpoint_unsupported"
    NO_FEASIBLE_VEHICLE = "no_feasible_vehicle"
    FLEET_EMPTY = "fleet_empty"
    BATCH_UNKNOWN = "batch_unknown"
    BATCH_ENDED = "batch_ended"
    STORAGE_FULL = "storage_full"
    VEHICLE_UNKNOWN = "vehicle_unknown"
    OVERLOADED = "overloaded"
    NO_SLOT_FREE = "no_slot_free"
    NO_SLOT_SPARE = "no_slot_spare"
    NO_VEHICLE_PERMITS = "no_vehicle_permits"


class Waiting(StrEnum):
    """Why accepted work is not running at this moment."""

    NO_VEHICLE_ONLINE = "no_vehicle_online"
    ALL_VEHICLES_REFUSE = "all_vehicles_refuse"
    ALL_SLOTS_TAKEN = "all_slots_taken"
    VEHICLES_QUARANTINED = "vehicles_quarantined"
