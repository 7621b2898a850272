"""Pairing waiting units with ready vehicles: feasible, then ranked, always by index.

A shape is work that is alike to the filter (one model); a vehicle group is cars that are alike
to it (one capability class). Which groups can run a shape, and in which order they are asked, is
worked out once for each pair and kept until a group or a model changes; a placement never looks
at more than the groups.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from terafleet.core.capability import CapabilityClass, ModelNeeds, is_feasible
from terafleet.core.ids import LeaseId, ModelId, VehicleId
from terafleet.core.predictions import Durations
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

    __slots__ = (
        "batch_leases",
        "does_batches",
        "kind",
        "known",
        "online",
        "present",
        "ready",
        "ready_count",
        "slots_online",
    )

    def __init__(self, kind: CapabilityClass) -> None:
        self.kind = kind
        self.does_batches = kind.does_batches
        self.known = 0
        self.online = 0
        self.slots_online = 0
        self.ready_count = 0
        self.ready: list[dict[VehicleId, None]] = [{} for _ in range(LEVELS)]
        self.batch_leases: dict[LeaseId, None] = {}
        """What a session may take the place of, the oldest first: leases of batches on cars that
        nothing but their leases keeps from another one."""
        self.present: dict[VehicleId, None] = {}
        """The cars that permit, the longest present first."""

    @property
    def permitting(self) -> int:
        """How many cars permit, and are not drained."""
        return len(self.present)


Tiers = tuple[list[VehicleGroup], list[VehicleGroup], list[VehicleGroup]]
"""Groups with a model in memory, with it on disk only, and without it; each best first."""


class Shape:
    """Waiting units of one model: requeued ones first, then in the order they came."""

    __slots__ = (
        "durations",
        "group_set",
        "groups",
        "groups_version",
        "needs",
        "online",
        "ranks",
        "requeued",
        "slots_online",
        "supply_version",
        "tiers",
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
        self.durations = Durations()
        self.groups: list[VehicleGroup] = []
        self.group_set: frozenset[VehicleGroup] = frozenset()
        self.ranks: dict[CapabilityClass, int] = {}
        self.tiers: Tiers = ([], [], [])
        self.groups_version = -1
        self.online = self.slots_online = 0
        self.supply_version = -1

    def add(self, unit: UnitRecord, *, is_requeued: bool) -> None:
        """Let a unit wait."""
        (self.requeued if is_requeued else self.waiting).append(unit)
        self.waiting_units += 1
        self.waiting_cost += unit.cost

    def withdraw(self, unit: UnitRecord) -> None:
        """A unit waits no more; its place in the queue is skipped when its turn comes."""
        self.waiting_units -= 1
        self.waiting_cost -= unit.cost

    def take(self, vehicle_id: VehicleId, cost_max: int, units_max: int) -> list[UnitRecord]:
        """Units of one batch for one lease, about `cost_max` tokens, at least one if any fits.

        A unit that the car has failed is passed over, unless all cars online have.
        """
        first = self._take_requeued(vehicle_id)
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

    def _take_requeued(self, vehicle_id: VehicleId) -> UnitRecord | None:
        passed_over: list[UnitRecord] = []
        found = None
        while self.requeued and found is None and len(passed_over) < EXCLUSION_LOOK:
            unit = self.requeued.popleft()
            if unit.state is not UnitState.WAITING:
                continue
            if vehicle_id in unit.failed_on and len(unit.failed_on) < self.online:
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


Rank = tuple[bool, bool, int, int, tuple[str, ...], tuple[ModelId, ...], tuple[ModelId, ...]]


def rank(kind: CapabilityClass, model_id: ModelId) -> Rank:
    """The order in which groups are asked: model in memory, on disk, then the least that suffices.

    Cars with more memory or more runtimes are kept for the work that needs them.
    """
    return (
        model_id not in kind.loaded,
        model_id not in kind.models,
        kind.memory_mb,
        len(kind.runtimes),
        kind.runtimes,
        kind.models,
        kind.loaded,
    )


class MatchmakingIndex:
    """Shapes, groups, and the feasible groups of each shape in their rank.

    Shapes with work and groups with ready cars are kept apart, so that a placement looks at
    neither a shape without work nor a group without cars.
    """

    def __init__(self) -> None:
        self.shapes: dict[ModelId, Shape] = {}
        self.groups: dict[CapabilityClass, VehicleGroup] = {}
        self.ready: dict[CapabilityClass, VehicleGroup] = {}
        self.opened: dict[VehicleGroup, None] = {}
        """Groups in which a slot may have come up since waiting sessions were last served."""
        self._groups_version = 0
        self._supply_version = 0

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
            self._groups_version += 1
        return group

    def supply_changed(self) -> None:
        """Cars have come, gone, or changed their mind: what shapes know of supply is old."""
        self._supply_version += 1

    def feasible(self, shape: Shape) -> list[VehicleGroup]:
        """The groups that can run a shape, best first."""
        if shape.groups_version != self._groups_version:
            model_id = shape.needs.model_id
            kinds = [kind for kind in self.groups if is_feasible(kind, shape.needs)]
            kinds.sort(key=lambda kind: rank(kind, model_id))
            shape.groups = [self.groups[kind] for kind in kinds]
            batch_kinds = [kind for kind in kinds if kind.does_batches]
            shape.ranks = {kind: place for place, kind in enumerate(batch_kinds)}
            live_groups = [group for group in shape.groups if group.kind.does_sessions]
            shape.group_set = frozenset(live_groups)
            shape.tiers = _tiers(live_groups, model_id)
            shape.groups_version = self._groups_version
            shape.supply_version = -1
        return shape.groups

    def feasible_tiers(self, shape: Shape) -> Tiers:
        """The groups that take sessions of a shape, by how soon its model can be used there."""
        self.feasible(shape)
        return shape.tiers

    def open_all(self) -> None:
        """Any slot may be one that a waiting session would take."""
        self.opened.update(dict.fromkeys(self.groups.values()))

    def still_open(self) -> list[VehicleGroup]:
        """The groups in which a slot has come up and is there for a session."""
        return [group for group in self.opened if group.ready_count or group.batch_leases]

    def can_use(self, shape: Shape, groups: Iterable[VehicleGroup]) -> bool:
        """Whether any of these groups takes sessions of a shape."""
        self.feasible(shape)
        return not shape.group_set.isdisjoint(groups)

    def feasible_ready(self, shape: Shape) -> list[VehicleGroup]:
        """The groups that take batches of a shape and have ready cars, best first."""
        groups, ranks = self.feasible(shape), shape.ranks
        if len(groups) <= len(self.ready):
            return [group for group in groups if group.ready_count and group.does_batches]
        kinds = [kind for kind in self.ready if kind in ranks]
        if len(kinds) > 1:
            kinds.sort(key=ranks.__getitem__)
        return [self.ready[kind] for kind in kinds]

    def learn_supply(self, shape: Shape) -> None:
        """Bring a shape's counts of cars online and of their slots up to date."""
        groups = self.feasible(shape)
        if shape.supply_version != self._supply_version:
            shape.online = sum(group.online for group in groups)
            shape.slots_online = sum(group.slots_online for group in groups)
            shape.supply_version = self._supply_version

    def add_ready(self, group: VehicleGroup, vehicle_id: VehicleId, level: int) -> None:
        """A car is ready, with so many leases in use."""
        group.ready[level][vehicle_id] = None
        group.ready_count += 1
        self.ready[group.kind] = group
        self.opened[group] = None

    def put_ready(self, group: VehicleGroup, levels: Sequence[Sequence[VehicleId]]) -> None:
        """Exactly these cars of a group are ready, by leases in use and in this order."""
        group.ready = [dict.fromkeys(level) for level in levels]
        group.ready_count = sum(map(len, levels))
        self.ready.pop(group.kind, None)
        if group.ready_count:
            self.ready[group.kind] = group

    def drop_ready(self, group: VehicleGroup, vehicle_id: VehicleId, level: int) -> None:
        """A car is ready no more, or with another number of leases."""
        del group.ready[level][vehicle_id]
        self._count_down(group)

    def take_ready(self, group: VehicleGroup) -> VehicleId | None:
        """The ready car to grant to next, which leaves the index: least used, then latest.

        The latest to become ready is awake and has its model in memory.
        """
        for level in group.ready:
            if level:
                vehicle_id = level.popitem()[0]
                self._count_down(group)
                return vehicle_id
        return None

    def _count_down(self, group: VehicleGroup) -> None:
        group.ready_count -= 1
        if not group.ready_count:
            del self.ready[group.kind]

    def with_work(self) -> list[Shape]:
        """The shapes that have waiting units, oldest shape first."""
        return [shape for shape in self.shapes.values() if shape.waiting_units]


def _tiers(groups: list[VehicleGroup], model_id: ModelId) -> Tiers:
    tiers: Tiers = ([], [], [])
    for group in groups:
        kind = group.kind
        tiers[0 if model_id in kind.loaded else 1 if model_id in kind.models else 2].append(group)
    return tiers


def lease_cost(shape: Shape, tokens_per_s: int, lease_target_ms: int) -> int:
    """How many tokens of work one lease takes: its aim in time, but no more than a fair share.

    The share is guided self-scheduling (Polychronopoulos and Kuck, 1987): the waiting work over
    twice the slots, so that leases shrink towards the end of the work and all end together.
    """
    by_time = tokens_per_s * lease_target_ms // 1_000
    by_share = shape.waiting_cost // (2 * max(1, shape.slots_online))
    return min(by_time, by_share)
