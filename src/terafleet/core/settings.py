"""What the operator sets for the fleet; comes in with an event, so that a replay has it too."""

import msgspec

from terafleet.core.pricing import Plan


class FleetSettings(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Times and bounds of the fleet's machine.

    A car's leases end `lease_ms` after it was last heard, in the car `margin_ms` earlier. A lease
    aims at `lease_target_ms` of work and takes at most `units_per_lease_max` units; it is overdue
    after `overdue_factor` times its predicted work plus `overdue_allowance_ms`.
    A unit fails for good when `blame_vehicles` different cars failed it, or after `failures_max`
    tries. A car that fails `quarantine_failures` times in a row gets nothing for `quarantine_ms`,
    doubled with each further failure up to `quarantine_ms_max`. A session waits for a slot for
    `session_wait_ms` at most; it is given `session_ms_min` at least, and `session_load_ms` more
    where its model must be loaded first. A car that is to keep a model has `session_load_ms` to
    load it, and `warm_fetch_ms_per_mb` for each MB of its memory more where it is not on the disk;
    then it is passed over for `warm_retry_ms`. A car of which nothing is known is expected to
    stay for `stay_prior_ms`: 10 to 12 hours is the mean residual stay of cars plugged in at home.
    """

    lease_ms: int = 20_000
    margin_ms: int = 4_000
    lease_target_ms: int = 60_000
    units_per_lease_max: int = 32
    overdue_factor: int = 5
    overdue_allowance_ms: int = 120_000
    blame_vehicles: int = 3
    failures_max: int = 5
    quarantine_failures: int = 3
    quarantine_ms: int = 30_000
    quarantine_ms_max: int = 3_600_000
    gateway_retry_ms: int = 60_000
    session_wait_ms: int = 30_000
    session_ms_min: int = 20_000
    session_load_ms: int = 60_000
    plan: Plan = Plan()
    warm_fetch_ms_per_mb: int = 1_000
    warm_retry_ms: int = 600_000
    stay_prior_ms: int = 36_000_000
