"""Keeps aside what grants bring, by lease and unit, until the guard wants it or lets it go."""

from terafleet.core.ids import LeaseId, WorkUnitId
from terafleet.protocol.agent import Grant, OfferedUnit

LEASES_MAX = 1_024
"""Many times the slots of any car: what a control plane may make us hold."""


class LeasedInputs:
    """The inputs of the leases that stand, or may come to stand."""

    def __init__(self) -> None:
        self._units: dict[LeaseId, dict[WorkUnitId, OfferedUnit]] = {}

    def keep(self, grant: Grant) -> None:
        """Keep what a grant brought; the oldest goes when there are too many."""
        self._units[grant.lease_id] = {unit.unit_id: unit for unit in grant.units}
        if len(self._units) > LEASES_MAX:
            del self._units[next(iter(self._units))]

    def unit(self, lease_id: LeaseId, unit_id: WorkUnitId) -> OfferedUnit | None:
        """A unit's input, or None if it is not here any more."""
        return self._units.get(lease_id, {}).get(unit_id)

    def forget(self, lease_id: LeaseId) -> None:
        """No attempt of this lease will begin any more."""
        self._units.pop(lease_id, None)

    def __len__(self) -> int:
        """How many leases have inputs here."""
        return len(self._units)
