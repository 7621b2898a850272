"""The agent at work: its parts put together, started, and brought to an end that owes nothing."""

import asyncio
import os
import platform
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet import __version__
from terafleet.agent.attempts import Attempts, Surroundings
from terafleet.agent.consumption import Consumption
from terafleet.agent.deeds import Deeds
from terafleet.agent.deliveries import Deliveries
from terafleet.agent.gateway import Gateway
from terafleet.agent.history import AttemptRow, HistoryUnreadable, read_attempts
from terafleet.agent.identity import Identity
from terafleet.agent.inputs import LeasedInputs
from terafleet.agent.link import Link, LinkHooks
from terafleet.agent.live import LiveRuns, LiveSurroundings
from terafleet.agent.meters import Meter, readings_meter
from terafleet.agent.model_cache import ModelCache
from terafleet.agent.model_disk import ModelDisk
from terafleet.agent.owner_policy_files import OwnerPolicyFiles
from terafleet.agent.page import OwnersPage, PageSources
from terafleet.agent.performer import Performer, Rooms
from terafleet.agent.place_clock import utc_offset_ms
from terafleet.agent.ports import Runtime, VehicleInterface
from terafleet.agent.readings_check import clean
from terafleet.agent.readings_log import READINGS_FOLDER, ReadingsLog
from terafleet.agent.results import ResultHooks
from terafleet.agent.runtime_keeper import RuntimeKeeper
from terafleet.agent.sampling import Sampling
from terafleet.agent.settings import AgentSettings
from terafleet.agent.status import (
    STATUS_FILE,
    STATUS_S,
    AgentStatus,
    DayOfEarning,
    DayStatus,
    ModelStatus,
    RefusalStatus,
    StatusFile,
    caps_status,
    readings_status,
    refusal_status,
)
from terafleet.bus.ports import Connect
from terafleet.core import guard_events as ev
from terafleet.core.capability import Capability
from terafleet.core.guard import Guard
from terafleet.core.guard_effects import AnyGuardEffect, GuardState
from terafleet.core.ids import ModelId, VehicleId
from terafleet.core.local_time import local_day
from terafleet.core.policy import endpoint_paths
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.standing import StandingRefusal, still_standing, what_ends
from terafleet.core.units import MS_PER_S
from terafleet.engine.clock import Clock, SystemClock
from terafleet.engine.codec import Codec
from terafleet.engine.engine import Engine, Shell
from terafleet.engine.ports import Record, StorageFull, Store
from terafleet.engine.recovery import recover
from terafleet.engine.settings import DAY_MS, MIB, EngineSettings
from terafleet.protocol.agent import Grant, KeptModel, Receipt

LEAVE_S = 3.0
"""How long a stopping agent waits for its runtime's end and for acknowledgements."""
LOOK_S = 0.02
OUTPUTS = "out/"

ENGINE_SETTINGS = EngineSettings(
    bytes_free_min=64 * MIB,
    bytes_free_enough=128 * MIB,
    snapshot_events=20_000,
    journal_keep_ms=DAY_MS,
    # A car's machine is small: to write it takes less than to fork.
    snapshots_by_fork=False,
)

log: FilteringBoundLogger = structlog.get_logger()


class Adapters(msgspec.Struct, frozen=True):
    """What stands between the agent and the world; `app` chooses it.

    `vehicle` makes the vehicle's interface from the clock and from what cuts the link. `meters`
    of the computer's energy come before what the readings say of its power.
    """

    store: Store
    connect: Connect
    gateway: Gateway
    runtimes: Mapping[str, Runtime]
    vehicle: Callable[[Clock, Callable[[int], None]], VehicleInterface]
    meters: Sequence[Meter] = ()


def guard_codec() -> Codec[ev.AnyGuardEvent, AnyGuardEffect]:
    """How the car's journal is written."""
    return Codec(ev.AnyGuardEvent, AnyGuardEffect, ev.SCHEMA, keeps_effects=False)


class Agent:
    """One agent, from a recovered record to a clean stop."""

    def __init__(
        self, settings: AgentSettings, identity: Identity, disk: ModelDisk, adapters: Adapters
    ) -> None:
        """Recover from the store. Raises JournalUnreadable, and what the store raises."""
        self._settings = settings
        self._identity = identity
        self._adapters = adapters
        codec = guard_codec()
        recovery = recover(adapters.store, codec, Guard)
        self.guard = recovery.machine
        self.clock = SystemClock(recovery.last_at_ms)
        shell: Shell[ev.AnyGuardEvent, AnyGuardEffect]
        shell = Shell(
            self._perform,
            _no_records,
            ev.GuardTimeAdvanced,
            is_urgent=lambda event: event.is_urgent,
        )
        self._engine: Engine[ev.AnyGuardEvent, AnyGuardEffect] = Engine(
            recovery, adapters.store, codec, shell, self.clock, ENGINE_SETTINGS
        )
        self._deeds = Deeds()
        self._inputs = LeasedInputs()
        enrolment = identity.enrolment
        self._cache = ModelCache(
            disk, adapters.gateway, lambda: identity.enrolment.manifest_key, changed=self._offer
        )
        self._keeper = RuntimeKeeper(adapters.runtimes, self._exited, self._deeds.spawn)
        self._deliveries = Deliveries(
            adapters.store,
            adapters.gateway,
            self._hand_in,
            self._engine.discard,
            self._deeds.spawn,
        )
        self._policy_files = OwnerPolicyFiles(settings.data_folder, settings.policy)
        self._policy_files.reload()
        self._sampling = Sampling(self._policy_files.policy, self._readings_changed)
        self._attempts = Attempts(self._surroundings())
        hooks = LinkHooks(
            guard=self.guard,
            submit=self._engine.submit,
            capability=self.capability,
            take_grant=self._take_grant,
            take_kept=self._take_kept,
            take_policy=self._take_policy,
            refused=identity.renew_soon,
            start_session=lambda request: self._live.take_request(request),
            stop_session=lambda lease_id: self._live.unwanted(lease_id),
        )
        self.link = Link(enrolment.vehicle_id, adapters.connect, self.clock, hooks)
        self._live = LiveRuns(self._live_surroundings(enrolment.vehicle_id))
        rooms = Rooms(
            self._cache,
            self._keeper,
            self._attempts,
            self._live,
            self._deliveries,
            self._inputs,
            self.link,
        )
        self._performer = Performer(rooms, self._engine.submit, self.clock, self._deeds.spawn)
        self._consumption = Consumption(self._link_bytes)
        self._recording = ReadingsLog(settings.data_folder / READINGS_FOLDER)
        self._day = DayOfEarning()
        self._standing: tuple[StandingRefusal, ...] = ()
        self._vehicle = adapters.vehicle(self.clock, self.link.cut)
        status_path = settings.data_folder / STATUS_FILE
        self._status = StatusFile(status_path, self.status, self.clock.now_ms)
        self._page = OwnersPage(settings.page_port, self._page_sources())

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then leave cleanly. A bug in any part ends it and is raised."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_record())
                await self._begin()
                others = [
                    group.create_task(self.link.run()),
                    group.create_task(self._vehicle.run(self._sampled)),
                    group.create_task(self._identity.keep_fresh(self._adapters.gateway)),
                    group.create_task(self._look_round()),
                    group.create_task(self._page.run()),
                    group.create_task(self._deeds.watch()),
                ]
                await stop.wait()
                await self._leave()
                for task in others:
                    task.cancel()
                await asyncio.wait(others)
                await self._deeds.stop()
                await self._engine.stop()
        finally:
            await self._deeds.stop()
            await self._keeper.stop()
            await self._adapters.gateway.close()
            self._recording.flush()
            self._status.update()

    def reload_policy(self) -> None:
        """Read the owner policy's files if they have changed; one with faults changes nothing."""
        before = self._policy_files.faults
        if self._policy_files.reload():
            policy = self._policy_files.policy
            self._sampling.change_policy(policy)
            self._engine.submit(ev.PolicyChanged(self.clock.now_ms(), policy))
            self._offer()
            log.info("policy_changed")
        faults = self._policy_files.faults
        if faults and faults != before:
            log.error("policy_refused", faults=faults)

    def capability(self) -> Capability:
        """What this car offers at this moment."""
        return Capability(
            runtimes=tuple(sorted(self._settings.runtimes)),
            memory_mb=runtime_memory_mb(self._settings),
            slots=self._settings.slots,
            models=self._cache.models(),
            device=f"{platform.machine()}, {self._settings.runtime_threads} threads",
            loaded=tuple(map(ModelId, self._performer.loaded)),
            kinds=self._policy_files.policy.work.kinds,
            endpoints=endpoint_paths(self._policy_files.policy),
            isolation=self._keeper.isolation,
        )

    def status(self) -> AgentStatus:
        """One look at everything; its time is left out."""
        loaded = frozenset(self._performer.loaded)
        models = tuple(
            ModelStatus(one, self._cache.name_of(one), one in loaded)
            for one in self._cache.models()
        )
        return AgentStatus(
            process_id=os.getpid(),
            boot_id=self.link.boot_id,
            agent_version=__version__,
            vehicle_id=self._identity.enrolment.vehicle_id,
            name=self._settings.name or self._identity.enrolment.name,
            state=self.guard.state,
            refusals=self.guard.refusals,
            is_connected=self.link.is_connected,
            epoch=self.link.epoch,
            lease_ids=self.guard.lease_ids,
            attempts=len(self._attempts) + len(self._live),
            receipts_waiting=self.link.receipts_waiting,
            models=models,
            readings=readings_status(self._sampling.newest),
            figures=self._attempts.figures,
            energy=self._attempts.energy.figures(),
            isolation_level=self._keeper.isolation,
            standing=self._standing_status(),
            today=self._today(),
            earned_micro=self.link.earned_micro,
            policy_faults=self._policy_files.faults,
            caps=caps_status(self._policy_files.policy),
            utc_offset_ms=self._utc_offset_ms(),
            page_url=self._page.url,
        )

    def _today(self) -> DayStatus:
        day = local_day(self.clock.now_ms() + self._utc_offset_ms())
        computer = self._policy_files.policy.terms.computer
        return self._day.status(self.guard, self.link.earned_micro, computer, day)

    def _utc_offset_ms(self) -> int:
        """What the place's clock is ahead of UTC; this computer's, before the car says it."""
        newest = self._sampling.newest
        return newest.utc_offset_ms if newest else utc_offset_ms(self.clock.now_ms())

    def _standing_status(self) -> tuple[RefusalStatus, ...]:
        now_ms = self.clock.now_ms()
        self._standing = still_standing(self._standing, self.guard.refusals, now_ms)
        around = (self._policy_files.policy, self._sampling.newest, now_ms, self.guard.usage)
        return tuple(refusal_status(one, what_ends(one.refusal, *around)) for one in self._standing)

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            results=self._result_hooks(),
            inputs=self._inputs,
            gateway=self._adapters.gateway,
            runtime_of=self._runtime_of,
            runtime_cpu_ms=self._keeper.cpu_ms,
            spawn=self._deeds.spawn,
            core_power_mw=self._settings.core_power_mw,
            meters=(*self._adapters.meters, self._readings_meter()),
        )

    def _live_surroundings(self, vehicle_id: VehicleId) -> LiveSurroundings:
        return LiveSurroundings(
            vehicle_id=vehicle_id,
            results=self._result_hooks(),
            publish=self.link.publish,
            runtime_of=self._runtime_of,
            is_granted=lambda lease_id: self._inputs.of(lease_id) is not None,
            spawn=self._deeds.spawn,
            energy=self._attempts.energy,
            shares=self._attempts.shares,
            figures=self._attempts.figures,
            token_ms=self._settings.session_token_ms,
        )

    def _readings_meter(self) -> Meter:
        return readings_meter(lambda: self._sampling.newest, self.clock.now_ms)

    def _result_hooks(self) -> ResultHooks:
        return ResultHooks(self._engine.submit, self._deliveries.expect_large, self.clock)

    def _runtime_of(self, model_id: str) -> Runtime | None:
        return self._keeper.running(self._performer.kind_of(model_id))

    async def _keep_record(self) -> None:
        try:
            await self._engine.run()
        except StorageFull as error:
            # Only a stop ends so; its last events count as if they had not come.
            log.warning("record_full_at_stop", cause=str(error))

    async def _begin(self) -> None:
        """Let the guard know of the restart, before anyone hears of the agent."""
        if not self.guard.receipts():
            # What a cut left between an acknowledgement and the deletion of its output.
            self._adapters.store.delete_blobs(OUTPUTS)
        now_ms = self.clock.now_ms()
        settings, policy = self._settings, self._policy_files.policy
        started = ev.AgentStarted(now_ms, policy, settings.slots, settings.computer_mw)
        self._engine.submit(started)
        await _until(lambda: self._engine.figures.groups > 0)

    async def _leave(self) -> None:
        """Give back what is held, hand in what is due, and say goodbye."""
        self._tell_consumption(is_last=True)
        self._engine.submit(ev.AgentStopping(self.clock.now_ms()))
        try:
            async with asyncio.timeout(self._patience_s()):
                await _until(self._owes_nothing)
        except TimeoutError:
            log.warning("left_in_haste", receipts=self.link.receipts_waiting)
        if not self.guard.lease_ids:
            self.link.say_goodbye()

    def _patience_s(self) -> float:
        """How long a stop may take: work at hand may end where the owner lets it."""
        giving = self._policy_files.policy.giving_back
        return LEAVE_S + (giving.finish_ms + giving.stop_ms) / MS_PER_S

    def _owes_nothing(self) -> bool:
        has_stopped = Refusal.AGENT_STOPPING in self.guard.refusals
        is_given_back = not self.guard.lease_ids and self.guard.state is not GuardState.YIELDING
        # Without a link there is nobody to hand in to; the receipts wait in the record.
        is_handed_in = not self.guard.receipts() or not self.link.epoch
        return has_stopped and is_given_back and is_handed_in

    async def _look_round(self) -> None:
        """What is looked at every second: the policy's files, what was consumed, the status."""
        while True:
            self.reload_policy()
            self._tell_consumption()
            self._status.update()
            await asyncio.sleep(STATUS_S)

    def _tell_consumption(self, *, is_last: bool = False) -> None:
        news = self._consumption.news(is_last=is_last)
        if news is not None:
            self._engine.submit(ev.Consumed(self.clock.now_ms(), *news))

    def _link_bytes(self) -> int:
        return self.link.traffic_bytes + self._adapters.gateway.traffic_bytes

    def _sampled(self, readings: Readings) -> None:
        """A sample was taken: what can't be true is missing."""
        plausible = clean(readings)
        self._recording.take(plausible)
        self._sampling.take(by_wall_clock(plausible, self.clock.wall_ahead_ms()))
        self._attempts.energy.take()

    def _page_sources(self) -> PageSources:
        return PageSources(self.status, self.clock.now_ms, self._read_attempts)

    def _read_attempts(self, limit: int) -> list[AttemptRow] | HistoryUnreadable:
        """For the owner's page: those of the last day; called in a thread."""
        folder, since_ms = self._settings.data_folder, self.clock.now_ms() - DAY_MS
        return read_attempts(folder, since_ms, limit, self.guard.lease_ids)

    def _take_policy(self, body: bytes) -> None:
        """The control plane set a policy for this car; the owner's own file is laid over it."""
        try:
            self._policy_files.keep_of_fleet(body)
        except OSError as error:
            log.warning("policy_not_kept", cause=error.strerror)
        self.reload_policy()

    def _perform(self, effects: list[AnyGuardEffect]) -> None:
        self._performer.perform(effects)

    def _exited(self, detail: str) -> None:
        self._performer.runtime_exited(detail)

    def _hand_in(self, receipts: Sequence[Receipt]) -> None:
        self.link.hand_in(receipts)

    def _offer(self) -> None:
        self.link.report_capability()

    def _take_grant(self, grant: Grant) -> None:
        self._inputs.keep(grant)
        self._cache.learn_address(grant.model_id, grant.manifest_address)

    def _take_kept(self, model: KeptModel) -> None:
        self._cache.learn_address(model.model_id, model.manifest_address)

    def _readings_changed(self, readings: Readings) -> None:
        self._engine.submit(ev.ReadingsChanged(self.clock.now_ms(), readings))


def by_wall_clock(readings: Readings, ahead_ms: int) -> Readings:
    """The sample with what the wall clock is ahead of the agent's added to the place's offset.

    The agent's clock never goes back, so one start with a clock in the future leaves it ahead;
    the owner's hours are those of the clock on the wall.
    """
    whole_ms = round(ahead_ms / MS_PER_S) * MS_PER_S
    if not whole_ms:
        return readings
    offset_ms = readings.utc_offset_ms + whole_ms
    return msgspec.structs.replace(readings, utc_offset_ms=offset_ms)


def runtime_memory_mb(settings: AgentSettings) -> int:
    """What one runtime may take: each kind is a program of its own, and all may be up at once."""
    return max(1, settings.memory_mb // len(settings.runtimes))


async def _until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(LOOK_S)


def _no_records(effect: AnyGuardEffect) -> list[Record]:
    """Nobody reads documents in a car."""
    del effect
    return []
