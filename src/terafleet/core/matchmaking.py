"""Pairing waiting units with ready vehicles: feasible, then ranked, always by index.

A shape is work that is alike to the filter (one model); a vehicle group is cars that are alike
to it (one capability class). Which groups can run a shape, and in which order they are asked, is
worked out once for each pair and kept until a group or a model changes; a placement never looks
at more than the groups.
"""

from collections import deque

from terafleet.core.capability import CapabilityClass, ModelNeeds, is_feasible
from terafleet.core.ids import ModelId, VehicleId
from terafleet.core.records import UnitRecord
from terafleet.core.work import UnitState

LEVELS = 8
"""Ready cars are kept by their leases in use, the least used first; beyond it all are alike."""

EXCLUSION_LOOK = 32
"""How many requeued units are looked at for one that a given car has not failed."""

TOKENS_PER_S_UNKNOWN = 1_000
"""The assumed speed of a slot before anything was measured: a small encoder on one core."""


class VehicleGroup:
    """Cars of one capability class, and which of them are ready, by leases in use."""

    __slots__ = ("kind", "known", "online", "permitting", "ready", "slots_online")

    def __init__(self, kind: CapabilityClass) -> None:
        self.kind = kind
        self.known = 0
        self.online = 0
        self.permitting = 0
        self.slots_online = 0
        self.ready: list[dict[VehicleId, None]] = [{} for _ in range(LEVELS)]

    def take(self) -> VehicleId | None:
        """The ready car to grant to next, which leaves the index: least used, then latest.

        The latest to become ready is awake and has its model in memory.
        """
        for level in self.ready:
            if level:
                return level.popitem()[0]
        return None


class Shape:
    """Waiting units of one model: requeued ones first, then in the order they came."""

    __slots__ = (
        "groups",
        "groups_version",
        "needs",
        "requeued",
        "tokens_per_s",
        "waiting",
        "waiting_cost",
        "waiting_units",
    )

    def __init__(self, needs: ModelNeeds) -> None:
        self.needs = needs
        self.waiting: deque[UnitRecord] = deque()
        self.requeued: deque[UnitRecord] = deque()
        self.waiting_units = 0
        self.waiting_cost = 0
        self.tokens_per_s = TOKENS_PER_S_UNKNOWN
        self.groups: list[VehicleGroup] = []
        self.groups_version = -1

    def add(self, unit: UnitRecord, *, is_requeued: bool) -> None:
        """Let a unit wait."""
        (self.requeued if is_requeued else self.waiting).append(unit)
        self.waiting_units += 1
        self.waiting_cost += unit.cost

    def withdraw(self, unit: UnitRecord) -> None:
        """A unit waits no more; its place in the queue is skipped when its turn comes."""
        self.waiting_units -= 1
        self.waiting_cost -= unit.cost

    def take(
        self, vehicle_id: VehicleId, cost_max: int, units_max: int, online: int
    ) -> list[UnitRecord]:
        """Units of one batch for one lease, about `cost_max` tokens, at least one if any fits.

        A unit that the car has failed is passed over, unless all the `online` cars have.
        """
        first = self._take_requeued(vehicle_id, online)
        queue = self.waiting
        while first is None and queue:
            unit = queue.popleft()
            first = unit if unit.state is UnitState.WAITING else None
        if first is None:
            return []
        units, cost = [first], first.cost
        while queue and len(units) < units_max:
            unit = queue[0]
            if unit.state is UnitState.WAITING:
                if unit.batch_id != first.batch_id or cost + unit.cost > cost_max:
                    break
                units.append(unit)
                cost += unit.cost
            queue.popleft()
        self.waiting_units -= len(units)
        self.waiting_cost -= cost
        return units

    def _take_requeued(self, vehicle_id: VehicleId, online: int) -> UnitRecord | None:
        passed_over: list[UnitRecord] = []
        found = None
        while self.requeued and found is None and len(passed_over) < EXCLUSION_LOOK:
            unit = self.requeued.popleft()
            if unit.state is not UnitState.WAITING:
                continue
            if vehicle_id in unit.failed_on and len(unit.failed_on) < online:
                passed_over.append(unit)
            else:
                found = unit
        self.requeued.extendleft(reversed(passed_over))
        return found

    def in_order(self) -> tuple[list[UnitRecord], list[UnitRecord]]:
        """Requeued and other waiting units, without those that were withdrawn."""
        return (
            [unit for unit in self.requeued if unit.state is UnitState.WAITING],
            [unit for unit in self.waiting if unit.state is UnitState.WAITING],
        )


Rank = tuple[bool, int, int, tuple[str, ...], tuple[ModelId, ...]]


def rank(kind: CapabilityClass, model_id: ModelId) -> Rank:
    """The order in which groups are asked: model on disk first, then the least that suffices.

    Cars with more memory or more runtimes are kept for the work that needs them.
    """
    is_missing = model_id not in kind.models
    return (is_missing, kind.memory_mb, len(kind.runtimes), kind.runtimes, kind.models)


class MatchmakingIndex:
    """Shapes, groups, and the feasible groups of each shape in their rank."""

    def __init__(self) -> None:
        self.shapes: dict[ModelId, Shape] = {}
        self.groups: dict[CapabilityClass, VehicleGroup] = {}
        self._version = 0

    def shape(self, needs: ModelNeeds) -> Shape:
        """The shape of a model."""
        shape = self.shapes.get(needs.model_id)
        if shape is None:
            shape = self.shapes[needs.model_id] = Shape(needs)
        return shape

    def group(self, kind: CapabilityClass) -> VehicleGroup:
        """The group of a class; a new one changes every shape's ranking."""
        group = self.groups.get(kind)
        if group is None:
            group = self.groups[kind] = VehicleGroup(kind)
            self._version += 1
        return group

    def feasible(self, shape: Shape) -> list[VehicleGroup]:
        """The groups that can run a shape, best first."""
        if shape.groups_version != self._version:
            model_id = shape.needs.model_id
            kinds = [kind for kind in self.groups if is_feasible(kind, shape.needs)]
            kinds.sort(key=lambda kind: rank(kind, model_id))
            shape.groups = [self.groups[kind] for kind in kinds]
            shape.groups_version = self._version
        return shape.groups

    def with_work(self) -> list[Shape]:
        """The shapes that have waiting units, oldest shape first."""
        return [shape for shape in self.shapes.values() if shape.waiting_units]


def lease_cost(shape: Shape, tokens_per_s: int, slots_online: int, lease_target_ms: int) -> int:
    """How many tokens of work one lease takes: its aim in time, but no more than a fair share.

    The share is guided self-scheduling (Polychronopoulos and Kuck, 1987): the waiting work over
    twice the slots, so that leases shrink towards the end of the work and all end together.
    """
    by_time = tokens_per_s * lease_target_ms // 1_000
    by_share = shape.waiting_cost // (2 * max(1, slots_online))
    return min(by_time, by_share)
