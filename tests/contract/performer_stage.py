"""A performer with a runtime on strings, a record in memory and a gateway on loopback."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from terafleet.agent.attempts import Attempts, Surroundings
from terafleet.agent.deeds import Deeds
from terafleet.agent.deliveries import Deliveries
from terafleet.agent.gateway import Gateway
from terafleet.agent.inputs import LeasedInputs
from terafleet.agent.link import Link, LinkHooks
from terafleet.agent.live import LiveRuns, LiveSurroundings
from terafleet.agent.model_cache import ModelCache
from terafleet.agent.model_disk import ModelDisk
from terafleet.agent.performer import Performer, Rooms
from terafleet.agent.ports import (
    RuntimeFailure,
    RuntimeLoaded,
    RuntimeModel,
    RuntimeResult,
    RuntimeUnavailable,
    RuntimeWork,
    SandboxReport,
    SessionEnd,
    SessionPiece,
    SessionRefused,
    SessionWork,
)
from terafleet.agent.results import ResultHooks
from terafleet.agent.runtime_keeper import RuntimeKeeper
from terafleet.bus.ports import Bus, BusUnavailable
from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.capability import Capability
from terafleet.core.ids import LeaseId, ModelId, VehicleId, WorkUnitId, large_output_name
from terafleet.core.reasons import Failure
from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.ports import Blob, JournalEntry
from terafleet.protocol import agent as wire
from terafleet.protocol.addresses import address_below
from terafleet.protocol.agent import INLINE_BYTES_MAX, Grant, OfferedUnit, Receipt
from tests.contract.agent_stage import FakeGateway, FakeModel, no_pause, until
from tests.contract.link_stage import FakeGuard
from tests.contract.virtual_time import VirtualTime

LINE = b'{"status_code":200,"body":{}}\n'
INPUT = b"{}\n" * 3
OUTPUTS_ADDRESS = "/out/b/a-car/?signature=s"
CORE_POWER_MW = 3_600_000
"""With it a millisecond of processor time is one mWh."""

E = TypeVar("E", bound=ev.GuardEvent)


class FakeRuntime:
    """A runtime that does what the test says, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_up = self.is_suspended = False
        self.unavailable: RuntimeUnavailable | None = None
        self.load_failure: RuntimeFailure | None = None
        self.load_gate = asyncio.Event()
        self.load_gate.set()
        self.at_once: dict[str, RuntimeResult | RuntimeFailure] = {}
        """Outcomes of attempts that do not wait for the test."""
        self.running: dict[str, asyncio.Future[RuntimeResult | RuntimeFailure]] = {}
        self.opened: dict[str, tuple[SessionWork, Callable[[SessionPiece], None]]] = {}
        self.sessions: dict[str, asyncio.Future[SessionEnd | SessionRefused | RuntimeFailure]] = {}
        self.kill_gate = asyncio.Event()
        self.kill_gate.set()
        self.used_ms = 0
        self.on_exit: Callable[[str], None] = lambda _: None

    async def start(self, on_exit: Callable[[str], None]) -> SandboxReport:
        """Up, unless the test says otherwise."""
        self.asked.append("start")
        await asyncio.sleep(0)
        if self.unavailable is not None:
            raise self.unavailable
        assert not self.is_up
        self.is_up, self.is_suspended, self.on_exit = True, False, on_exit
        return SandboxReport(True, True, True, True, True)

    async def load(self, model: RuntimeModel) -> RuntimeLoaded | RuntimeFailure:
        """Loaded, unless the test says otherwise."""
        self.asked.append(f"load {model.model_id[:8]}")
        await self.load_gate.wait()
        return self.load_failure or RuntimeLoaded(model.model_id, 1, 1)

    async def run(self, work: RuntimeWork) -> RuntimeResult | RuntimeFailure:
        """Runs until the test gives the outcome, unless it has given it before."""
        self.asked.append(f"run {work.attempt_id}")
        if not self.is_up:
            return RuntimeFailure(work.attempt_id, Failure.RUNTIME_CRASHED, "it does not run")
        if work.attempt_id in self.at_once:
            return self.at_once.pop(work.attempt_id)
        self.running[work.attempt_id] = asyncio.get_running_loop().create_future()
        return await self.running[work.attempt_id]

    async def open(
        self, work: SessionWork, take: Callable[[SessionPiece], None]
    ) -> SessionEnd | SessionRefused | RuntimeFailure:
        """Answers until the test ends it; the test gives the pieces to `take`."""
        self.asked.append(f"open {work.session_id}")
        self.opened[work.session_id] = (work, take)
        self.sessions[work.session_id] = asyncio.get_running_loop().create_future()
        return await self.sessions[work.session_id]

    async def stop(self, attempt_id: str) -> None:
        """The attempt fails as stopped."""
        self.asked.append(f"stop {attempt_id}")
        self.end(attempt_id, RuntimeFailure(attempt_id, Failure.STOPPED))
        self.end_session(attempt_id, RuntimeFailure(attempt_id, Failure.STOPPED))

    def suspend(self) -> None:
        """Noted."""
        self.asked.append("suspend")
        self.is_suspended = True

    def resume(self) -> None:
        """Nobody asks for it."""
        raise AssertionError

    async def kill(self) -> None:
        """Everything that ran has stopped."""
        self.asked.append("kill")
        await self.kill_gate.wait()
        self.die(Failure.STOPPED)

    def cpu_ms(self) -> int:
        """What the test says."""
        return self.used_ms

    def end(self, attempt_id: str, outcome: RuntimeResult | RuntimeFailure) -> None:
        """An attempt ends."""
        waiting = self.running.pop(attempt_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome)

    def end_session(self, name: str, outcome: SessionEnd | SessionRefused | RuntimeFailure) -> None:
        """A session ends."""
        waiting = self.sessions.pop(name, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome)

    def answer(self, attempt_id: str, payload: bytes = LINE * 3, cpu_ms: int = 40) -> None:
        """An attempt ends well."""
        self.end(attempt_id, RuntimeResult(attempt_id, payload, 30, 5, cpu_ms))

    def answer_at_once(self, attempt_id: str, payload: bytes = LINE * 3) -> None:
        """An attempt that is yet to come will end well without a wait."""
        self.at_once[attempt_id] = RuntimeResult(attempt_id, payload, 30, 5, 40)

    def die(self, reason: Failure) -> None:
        """The process is gone."""
        self.is_up = False
        for attempt_id in list(self.running):
            self.end(attempt_id, RuntimeFailure(attempt_id, reason, "signal 9"))
        for name in list(self.sessions):
            self.end_session(name, RuntimeFailure(name, reason, "signal 9"))

    def crash(self) -> None:
        """The process is gone by itself."""
        self.die(Failure.RUNTIME_CRASHED)
        self.on_exit("signal 11")


class Stage:
    """A performer and all that it does deeds with."""

    def __init__(self, folder: Path, gateway: FakeGateway) -> None:
        self.gateway = gateway
        self.time = VirtualTime()
        self.runtime = FakeRuntime()
        self.model = FakeModel({"vocabulary.txt": b"one\n"})
        self.model.put_on(gateway)
        self.events: list[ev.AnyGuardEvent] = []
        self.store = MemoryStore()
        self.receipts: list[Receipt] = []
        self.batches: list[int] = []
        self.discarded: list[str] = []
        self.deeds = Deeds()
        self.inputs = LeasedInputs()
        self.way = Gateway(gateway.url)
        self._sequence = 0
        disk = ModelDisk(folder / "models", 1 << 30)
        self.cache = ModelCache(disk, self.way, lambda: self.model.manifest_key, no_pause)
        self.cache.learn_address(self.model.model_id, self.model.address)
        spawn = self.deeds.spawn
        self.keeper = RuntimeKeeper({"noop": self.runtime}, self._exited, spawn)
        self.deliveries = self.new_deliveries()
        self.attempts = Attempts(
            Surroundings(
                results=ResultHooks(self._submit, self.deliveries.expect_large, self.time.clock),
                inputs=self.inputs,
                gateway=self.way,
                runtime_of=lambda one: self.keeper.running(self.performer.kind_of(one)),
                runtime_cpu_ms=self.keeper.cpu_ms,
                spawn=spawn,
                core_power_mw=CORE_POWER_MW,
            )
        )
        self.link = self._link()
        self.said: list[tuple[str, bytes]] = []
        self.live = LiveRuns(self._live_surroundings())
        self.rooms = Rooms(
            self.cache,
            self.keeper,
            self.attempts,
            self.live,
            self.deliveries,
            self.inputs,
            self.link,
        )
        self.performer = Performer(self.rooms, self._submit, self.time.clock, spawn)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Stage"]:
        """Deeds run while the context lasts; none of them may fail."""
        watching = asyncio.create_task(self.deeds.watch())
        try:
            yield self
            await asyncio.sleep(0)
            if watching.done():
                await watching
        finally:
            watching.cancel()
            await self.deeds.stop()
            await self.way.close()

    def new_deliveries(self) -> Deliveries:
        """As those of a process that has just begun: they know what the record holds."""
        ways = (self._hand_in, self._discard)
        return Deliveries(self.store, self.way, *ways, self.deeds.spawn, no_pause)

    def perform(self, *effects: fx.AnyGuardEffect) -> None:
        """Let the performer do these."""
        self.performer.perform(list(effects))

    async def loaded(self) -> None:
        """Have the model in the runtime."""
        before = len(self.of(ev.ModelReady))
        self.perform(fx.PrepareModel(self.model.model_id))
        await self.heard(ev.ModelReady, before + 1)

    async def started(
        self, lease: int = 1, units: Sequence[int] = (1,), **changes: str | bytes | int
    ) -> str:
        """Have the first attempt of a lease running; its name."""
        self.grant(lease, units, **changes)
        name = f"{lease}-{units[0]}"
        self.perform(self.start_of(lease, units))
        await self.runs(name)
        return name

    async def runs(self, name: str) -> None:
        """Wait until the runtime has an attempt."""
        await until(lambda: name in self.runtime.running)

    def grant(
        self, lease: int = 1, units: Sequence[int] = (1,), **changes: str | bytes | int
    ) -> None:
        """Keep a grant's inputs; the changes are to each unit that is offered."""
        digest = hashlib.sha256(INPUT).digest()
        offered = tuple(
            msgspec.structs.replace(OfferedUnit(WorkUnitId(unit), 3, digest, INPUT, ""), **changes)
            for unit in units
        )
        grant = Grant(
            lease_id=LeaseId(lease),
            model_id=self.model.model_id,
            manifest_address=self.model.address,
            outputs_address=OUTPUTS_ADDRESS,
            endpoint="/v1/e",
            units=offered,
        )
        self.inputs.keep(grant)

    def start_of(self, lease: int = 1, units: Sequence[int] = (1,)) -> fx.StartAttempts:
        """The effect that starts the attempts of a lease."""
        unit_ids = tuple(map(WorkUnitId, units))
        return fx.StartAttempts(LeaseId(lease), unit_ids, self.model.model_id, "/v1/e")

    def ran(self) -> list[str]:
        """The attempts that the runtime was given, in their order."""
        return [asked.split()[1] for asked in self.runtime.asked if asked.startswith("run ")]

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind that the guard got."""
        return [event for event in self.events if isinstance(event, kind)]

    async def heard(self, kind: type[E], count: int = 1) -> E:
        """The newest event of a kind, once so many have come."""
        await until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[-1]

    async def quiet(self) -> None:
        """Let everything happen that is on its way."""
        for _ in range(3):
            await self.time.settle()
            await asyncio.sleep(0.01)

    def pace_sessions(self, token_ms: int) -> None:
        """Let so much time be between two pieces of a session."""
        self.live = LiveRuns(self._live_surroundings(token_ms))
        self.rooms = msgspec.structs.replace(self.rooms, live=self.live)
        self.performer = Performer(self.rooms, self._submit, self.time.clock, self.deeds.spawn)

    def _live_surroundings(self, token_ms: int = 0) -> LiveSurroundings:
        return LiveSurroundings(
            vehicle_id=VehicleId("veh-a"),
            results=ResultHooks(self._submit, self.deliveries.expect_large, self.time.clock),
            publish=lambda subject, body: self.said.append((subject, body)),
            runtime_of=lambda model_id: self.keeper.running(self.performer.kind_of(model_id)),
            is_granted=lambda lease_id: self.inputs.of(lease_id) is not None,
            spawn=self.deeds.spawn,
            energy=self.attempts.energy,
            shares=self.attempts.shares,
            figures=self.attempts.figures,
            token_ms=token_ms,
            sleep=self.time.sleep,
        )

    def _link(self) -> Link:
        async def nowhere() -> Bus:
            raise BusUnavailable

        capability = Capability(("noop",), 64, 1)
        hooks = LinkHooks(
            guard=FakeGuard(),
            submit=self._submit,
            capability=lambda: capability,
            take_grant=self.inputs.keep,
            take_kept=lambda _: None,
            take_policy=lambda _: None,
            refused=lambda: None,
            start_session=self._start_session,
            stop_session=self._stop_session,
        )
        return Link(VehicleId("veh-a"), nowhere, self.time.clock, hooks)

    def _start_session(self, request: wire.StartSession) -> None:
        self.live.take_request(request)

    def _stop_session(self, lease_id: LeaseId) -> None:
        self.live.unwanted(lease_id)

    def _submit(self, event: ev.AnyGuardEvent, blobs: Sequence[Blob] = ()) -> bool:
        self._sequence += 1
        self.store.commit([JournalEntry(self._sequence, 0, 1, b"", b"")], [], blobs)
        self.events.append(event)
        return True

    def _hand_in(self, receipts: Sequence[Receipt]) -> None:
        self.batches.append(len(receipts))
        self.receipts.extend(receipts)

    def _discard(self, names: Sequence[str]) -> None:
        self._sequence += 1
        self.discarded += names
        blobs = [Blob(name, None) for name in names]
        self.store.commit([JournalEntry(self._sequence, 0, 1, b"", b"")], [], blobs)

    def _exited(self, detail: str) -> None:
        self.performer.runtime_exited(detail)


def large(character: str = "x") -> bytes:
    """An output of three answers that is too large for a parcel."""
    body = character * (INLINE_BYTES_MAX // 3)
    return b'{"status_code":200,"body":"%b"}\n' % body.encode() * 3


def put_path(lease: int, unit: int) -> str:
    """Where the gateway is asked to take a large output."""
    return address_below(OUTPUTS_ADDRESS, large_output_name(LeaseId(lease), WorkUnitId(unit)))


NO_MODEL = ModelId("0" * 64)
