"""The leases in a car: which stand, which are on a slot, and which wait for one.

It knows neither permits nor models: the guard says when attempts may begin, and of what.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence

from terafleet.core.guard_accounts import Share
from terafleet.core.guard_effects import AnyGuardEffect, ForgetLease, StartAttempts, StopAttempts
from terafleet.core.ids import SESSION_UNIT, LeaseId, ModelId, WorkUnitId


class CarLease:
    """A lease in the car: its units not yet done, in their order, and whether it is on a slot."""

    __slots__ = (
        "began_ms",
        "endpoint",
        "is_running",
        "lease_id",
        "mark",
        "model_id",
        "number",
        "units",
    )

    def __init__(
        self, lease_id: LeaseId, model_id: ModelId, endpoint: str, units: Iterable[WorkUnitId]
    ) -> None:
        self.lease_id = lease_id
        self.model_id = model_id
        self.endpoint = endpoint
        self.units = dict.fromkeys(units)
        self.is_running = False
        self.number = 0
        """Counts the grants: a slot goes to the lease that was granted first."""
        self.began_ms = 0
        """When the attempt at hand began, or a moment before."""
        self.mark = Share()
        """The accounts' mark (`CarAccounts.each`) up to which its time is asked for."""

    @property
    def is_session(self) -> bool:
        """Whether a live request runs under it."""
        return SESSION_UNIT in self.units


class CarLeases:
    """All leases of a car. What is to be done about them is told to `tell`, in its order."""

    def __init__(
        self, tell: Callable[[AnyGuardEffect], None], restored: Iterable[LeaseId] = ()
    ) -> None:
        """`restored` stand from before a restart; nobody knows their units any more."""
        self._tell = tell
        self._leases = {one: CarLease(one, ModelId(""), "", ()) for one in restored}
        self._granted = 0
        self._ready: list[CarLease] = []
        self.slots = 0
        self.running = 0

    def __iter__(self) -> Iterator[CarLease]:
        """The leases that stand, oldest first; they may be dropped meanwhile."""
        return iter(list(self._leases.values()))

    def __len__(self) -> int:
        """How many leases stand."""
        return len(self._leases)

    @property
    def ids(self) -> tuple[LeaseId, ...]:
        """The leases that stand."""
        return tuple(self._leases)

    def get(self, lease_id: LeaseId) -> CarLease | None:
        """A lease, if it stands."""
        return self._leases.get(lease_id)

    def forget_process(self, slots: int) -> None:
        """Of the process before, nothing is true any more but which leases stand."""
        self.slots, self.running = slots, 0
        self._ready.clear()
        for lease in self._leases.values():
            lease.is_running = False
            lease.units.clear()

    def add(self, lease: CarLease) -> None:
        """A lease is granted; without units it waits for nothing."""
        self._granted += 1
        lease.number = self._granted
        self._leases[lease.lease_id] = lease
        if lease.units:
            self._ready.append(lease)

    def drop(self, lease: CarLease) -> None:
        """A lease stands no more: its attempts are stopped, its inputs forgotten."""
        if lease.is_running:
            self._tell(StopAttempts(lease.lease_id))
            lease.is_running = False
            self.running -= 1
        elif lease.units:
            self._ready.remove(lease)
        self._forget(lease)

    @property
    def waiting(self) -> int:
        """How many leases with open units are on no slot."""
        return len(self._ready)

    def start(self, is_loaded: Callable[[ModelId], bool], now_ms: int, mark: Share) -> None:
        """Put leases that wait on the free slots, if their model stands in memory."""
        at = 0
        while at < len(self._ready) and self.running < self.slots:
            lease = self._ready[at]
            if not is_loaded(lease.model_id):
                at += 1
                continue
            del self._ready[at]
            lease.is_running = True
            lease.began_ms, lease.mark = now_ms, mark
            self.running += 1
            units = tuple(lease.units)
            self._tell(StartAttempts(lease.lease_id, units, lease.model_id, lease.endpoint))

    def went_on(self, passed_ms: int) -> None:
        """The attempts at hand stood still for so long."""
        for lease in self._leases.values():
            lease.began_ms += passed_ms

    def on_slot(self, lease_id: LeaseId, unit_ids: Sequence[WorkUnitId]) -> CarLease | None:
        """The lease if it is on a slot and these units of it are still open."""
        lease = self._leases.get(lease_id)
        if lease is None or not lease.is_running:
            return None
        return lease if all(map(lease.units.__contains__, unit_ids)) else None

    def leave_slot(self, lease: CarLease) -> None:
        """No attempt of a lease runs any more; without open units it is done."""
        lease.is_running = False
        self.running -= 1
        if lease.units:
            insort(self._ready, lease, key=_number)
        else:
            self._forget(lease)

    def check_invariants(self) -> None:
        """Assert what must always hold."""
        running = [lease for lease in self._leases.values() if lease.is_running]
        assert len(running) == self.running <= max(self.slots, 0)
        assert all(lease.units for lease in running)
        ready = [one for one in self._leases.values() if not one.is_running and one.units]
        assert ready == self._ready

    def _forget(self, lease: CarLease) -> None:
        del self._leases[lease.lease_id]
        self._tell(ForgetLease(lease.lease_id))


def _number(lease: CarLease) -> int:
    return lease.number
