"""How long a car will stay: what it has shown so far, and what is known of cars before that.

It knows nothing of hours, calendars or places; a forecast that does takes its place later.
"""

from terafleet.core.records import VehicleRecord


def observe_stay(vehicle: VehicleRecord, is_staying: bool, now_ms: int) -> None:
    """Count the time that a car permits, and how often it ceased to; call it at each change."""
    if is_staying and not vehicle.staying_since_ms:
        vehicle.staying_since_ms = now_ms
    elif not is_staying and vehicle.staying_since_ms:
        vehicle.stay_ms += now_ms - vehicle.staying_since_ms
        vehicle.departures += 1
        vehicle.staying_since_ms = 0


def expected_stay_ms(vehicle: VehicleRecord, now_ms: int, prior_ms: int) -> int:
    """How long a car that permits goes on to do so, in ms: the posterior mean.

    Departures are taken as memoryless (the hazard of parked cars is nearly flat), their rate as
    gamma distributed with shape 2 and scale 1/`prior_ms`, whose mean stay is `prior_ms`. Gamma is
    the conjugate prior of the exponential distribution: after `n` departures in `t` ms the rate
    has shape 2 + n and scale 1/(prior_ms + t), and the mean of its inverse is
    (prior_ms + t) / (n + 1) (Gelman et al., Bayesian Data Analysis, 3rd edition, section 2.6).
    """
    seen_ms = vehicle.stay_ms
    if vehicle.staying_since_ms:
        seen_ms += now_ms - vehicle.staying_since_ms
    return (prior_ms + seen_ms) // (vehicle.departures + 1)
