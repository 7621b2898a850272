"""One shard: the fleet's machine in its engine, the links to cars, the answers to gateways."""

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import structlog

from terafleet.bus.ports import Bus, Message, Subscription
from terafleet.control.ports import Objects
from terafleet.control.shard.journal import FLEET_CODEC
from terafleet.control.shard.links import Links, LinkSettings
from terafleet.control.shard.performer import Addresses, Performer, PerformerHooks, to_records
from terafleet.control.shard.service import Answers, Health, Service, ShardView
from terafleet.core import events as ev
from terafleet.core.effects import FleetEffect
from terafleet.core.fleet import Fleet
from terafleet.core.fleet_leases import lease_waiting_for
from terafleet.core.fleet_state import FleetState
from terafleet.core.ids import OUTPUTS, LeaseId, VehicleId, WorkUnitId, receipt_of
from terafleet.core.settings import FleetSettings
from terafleet.engine.clock import SystemClock
from terafleet.engine.engine import Engine, Shell
from terafleet.engine.ports import Blob, Store
from terafleet.engine.recovery import recover
from terafleet.engine.settings import EngineSettings
from terafleet.protocol.agent import UP_SUBJECTS
from terafleet.protocol.sessions import FROM_GATEWAY_DECODER, LeaseWanted
from terafleet.protocol.shard import SESSIONS_SUBJECT, SHARD_SUBJECT

log = structlog.get_logger(__name__)

SILENCE_LOOK_S = 1.0


class ShardSettings(msgspec.Struct, frozen=True):
    """What the operator sets for a shard."""

    fleet: FleetSettings = FleetSettings()
    links: LinkSettings = LinkSettings()
    engine: EngineSettings = EngineSettings()


class ShardPorts(msgspec.Struct, frozen=True):
    """What a shard works with; `boot_id` is new for each process."""

    bus: Bus
    store: Store
    objects: Objects
    address_secret: bytes
    boot_id: str


class Shard:
    """Recovers the fleet, then keeps it going until stopped."""

    def __init__(
        self,
        ports: ShardPorts,
        settings: ShardSettings,
        on_storage: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Recover from the store; raises what recovery raises, nothing is sent yet."""
        self._settings = settings
        recovery = recover(ports.store, FLEET_CODEC, Fleet)
        self._fleet = recovery.machine
        self._clock = SystemClock(recovery.last_at_ms)
        self._bus = ports.bus
        self._store = ports.store
        self._links = Links(
            ports.bus, self._submit, self._clock.now_ms, settings.links, self._earned_micro
        )
        self._answers = Answers(ports.bus, ports.boot_id)
        addresses = Addresses(ports.address_secret, self._clock.now_ms)
        performer = Performer(
            self._links,
            ports.bus,
            ports.objects,
            addresses,
            self._answers,
            PerformerHooks(self._discard, self._stands),
        )
        shell: Shell[ev.FleetEvent, FleetEffect] = Shell(
            performer.perform,
            to_records,
            ev.TimeAdvanced,
            on_storage,
            self._answers.refuse_waiting,
            lambda event: event.is_urgent,
        )
        self._engine: Engine[ev.FleetEvent, FleetEffect] = Engine(
            recovery, ports.store, FLEET_CODEC, shell, self._clock, settings.engine
        )
        view = ShardView(self._fleet, ports.store, self._links, self._clock.now_ms())
        self._service = Service(view, self._answers, self._submit, self._clock.now_ms, self._health)
        self._waiting: set[str] = set()
        self._subscriptions: list[Subscription] = []
        log.info(
            "shard_recovered",
            sequence=recovery.last_sequence,
            events_replayed=recovery.events_replayed,
            vehicles=len(self._fleet.state.vehicles),
            batches=len(self._fleet.state.batches),
        )

    def _earned_micro(self, vehicle_id: VehicleId) -> int:
        vehicle = self._fleet.state.vehicles.get(vehicle_id)
        return vehicle.reward_micro if vehicle else 0

    @property
    def fleet(self) -> Fleet:
        """The machine, to be read between two events."""
        return self._fleet

    def _health(self) -> Health:
        engine = self._engine
        return Health(engine.figures, engine.is_storage_full, engine.is_commit_failing)

    def _submit(self, event: ev.FleetEvent, blobs: Sequence[Blob]) -> bool:
        if blobs and not (is_output_awaited(self._fleet.state, event) and self._is_first(blobs)):
            blobs = ()
        return self._engine.submit(event, blobs)

    def _is_first(self, blobs: Sequence[Blob]) -> bool:
        """Whether no output of these names waits in the inbox.

        The machine has not heard of what waits there; a second one would replace a first one
        that is about to count.
        """
        if not self._engine.inbox_length:
            self._waiting.clear()
        names = {blob.name for blob in blobs}
        is_first = self._waiting.isdisjoint(names)
        self._waiting |= names
        return is_first

    def _discard(self, names: Sequence[str]) -> None:
        self._engine.discard(names)

    async def run(self) -> None:
        """Work until `stop`; raises what a bug raised."""
        state = self._fleet.state
        self._links.resume(
            (vehicle.vehicle_id, vehicle.epoch, not vehicle.refusals)
            for vehicle in state.vehicles.values()
            if vehicle.epoch
        )
        self._discard(list(outputs_without_use(state, self._store.blob_names(OUTPUTS))))
        self._submit(ev.ShardStarted(self._clock.now_ms(), self._settings.fleet), ())
        # What was recovered lives long: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        self._subscriptions = [
            await self._bus.subscribe(UP_SUBJECTS, self._links.receive),
            await self._bus.subscribe(SHARD_SUBJECT, self._service.receive),
            await self._bus.subscribe(SESSIONS_SUBJECT, self._wish_for_session, is_sole=True),
        ]
        looking = asyncio.create_task(self._look_for_silence())
        try:
            await self._engine.run()
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

    async def stop(self) -> None:
        """Take nothing more, handle what has come, write a snapshot, close the store."""
        for subscription in self._subscriptions:
            await subscription.end()
        await self._engine.stop()

    def _wish_for_session(self, message: Message) -> None:
        """What a gateway wants for a live session; if it is lost, the gateway says it again."""
        try:
            wish = FROM_GATEWAY_DECODER.decode(message.body)
        except msgspec.DecodeError as fault:
            log.warning("message_undecodable", fault=str(fault))
            return
        now_ms = self._clock.now_ms()
        fields = msgspec.structs.astuple(wish)
        kind = ev.SessionWanted if isinstance(wish, LeaseWanted) else ev.SessionUnwanted
        self._submit(kind(now_ms, *fields), ())

    def _stands(self, lease_id: LeaseId) -> bool:
        return lease_id in self._fleet.state.leases

    async def _look_for_silence(self) -> None:
        while True:
            await asyncio.sleep(SILENCE_LOOK_S)
            self._links.look_for_silence()


def is_output_awaited(state: FleetState, event: ev.FleetEvent) -> bool:
    """Whether the outputs that came with an event are such as the fleet waits for from this car.

    Leases only end, so what is not awaited when it comes will not be taken either; were it
    written all the same, a car could replace another's output.
    """
    return isinstance(event, ev.AttemptsReturned) and lease_waiting_for(state, event) is not None


def outputs_without_use(state: FleetState, names: Iterable[str]) -> Iterator[str]:
    """The names of outputs that will never be read: their unit is forgotten, or has another one.

    A crash between a commit and what it asked for leaves such outputs behind.
    """
    for name in names:
        lease_id, receipt_id = receipt_of(name)
        unit = state.units.get(WorkUnitId(receipt_id))
        if unit is None or not unit.has_output(lease_id, receipt_id):
            yield name
