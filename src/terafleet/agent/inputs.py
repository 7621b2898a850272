"""Keeps aside what grants bring, by lease and unit, until the guard wants it or lets it go."""

from terafleet.core.ids import LeaseId, WorkUnitId
from terafleet.protocol.agent import Grant, OfferedUnit

LEASES_MAX = 1_024
"""Many times the slots of any car: what a control plane may make us hold."""


class LeasedInput:
    """The inputs of one lease, the folder that large outputs of it are put to, and its session."""

    __slots__ = ("outputs_address", "session_id", "units")

    def __init__(self, grant: Grant) -> None:
        self.units: dict[WorkUnitId, OfferedUnit] = {unit.unit_id: unit for unit in grant.units}
        self.outputs_address = grant.outputs_address
        self.session_id = grant.session_id


class LeasedInputs:
    """The inputs of the leases that stand, or may come to stand."""

    def __init__(self) -> None:
        self._leases: dict[LeaseId, LeasedInput] = {}

    def keep(self, grant: Grant) -> None:
        """Keep what a grant brought; the oldest goes when there are too many."""
        self._leases[grant.lease_id] = LeasedInput(grant)
        if len(self._leases) > LEASES_MAX:
            del self._leases[next(iter(self._leases))]

    def of(self, lease_id: LeaseId) -> LeasedInput | None:
        """The inputs of a lease, or None if they are not here any more."""
        return self._leases.get(lease_id)

    def forget(self, lease_id: LeaseId) -> None:
        """No attempt of this lease will begin any more."""
        self._leases.pop(lease_id, None)

    def __len__(self) -> int:
        """How many leases have inputs here."""
        return len(self._leases)
