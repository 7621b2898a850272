"""The agent put together: a real guard, engine and record, a runtime that answers at once."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from terafleet.agent import service
from terafleet.agent.adapters.runtime.noop import NoopRuntime
from terafleet.agent.adapters.vehicle.scripted import ScriptedVehicle
from terafleet.agent.adapters.vehicle.timetable import Step, Timetable
from terafleet.agent.app import Exit, run_agent
from terafleet.agent.gateway import Gateway
from terafleet.agent.identity import Identity, enrol, load_identity
from terafleet.agent.model_disk import ModelDisk
from terafleet.agent.ports import Runtime, RuntimeFailure
from terafleet.agent.results import address_name
from terafleet.agent.service import Adapters, Agent, guard_codec
from terafleet.agent.settings import AgentSettings, load_settings
from terafleet.agent.status import AgentStatus, read_status
from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.bus.ports import Bus, Message
from terafleet.core import guard_events as ev
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import WHOLE_LEASE, Epoch, LeaseId, ReceiptId, WorkUnitId, output_name
from terafleet.core.policy import OwnerPolicy, YieldPolicy
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.clock import Clock
from terafleet.protocol import agent as wire
from terafleet.protocol.agent import INLINE_BYTES_MAX
from terafleet.protocol.fleet_http import ENROL_PATH
from terafleet.protocol.parcel import unpack
from tests.contract.agent_stage import (
    VEHICLE,
    FakeGateway,
    FakeModel,
    an_enrolment,
    answer,
    until,
)
from tests.contract.link_stage import FakePlane
from tests.contract.performer_stage import OUTPUTS_ADDRESS, FakeRuntime, put_path
from tests.contract.virtual_time import VirtualTime

PARKED = Step(0, True, False, True, 90.0, 20.0)
INPUT = b"{}\n{}\n"
ANSWERS = b'{"status_code":200}\n' * 2
LARGE = b'{"status_code":200,"body":"%b"}\n' % (b"x" * INLINE_BYTES_MAX) * 2
LARGE_KEY = (LeaseId(1), ReceiptId(1))
POLICY = OwnerPolicy(giving_back=YieldPolicy(settle_ms=0, stale_ms=5_000, release_ms=1_000))


class World:
    """A car's folder, and what is outside of the car."""

    def __init__(self, folder: Path, gateway: FakeGateway) -> None:
        self.folder = folder
        self.gateway = gateway
        self.broker = MemoryBroker()
        self.plane = FakePlane(self.broker, VirtualTime(0))
        self.model = FakeModel({"vocabulary.txt": b"one\n"})
        self.model.put_on(gateway)
        self.leases = 0
        self.store: SqliteStore | None = None

    @asynccontextmanager
    async def agent(
        self,
        steps: tuple[Step, ...] = (PARKED,),
        runtime: Runtime | None = None,
        crashes: bool = False,
    ) -> AsyncIterator[Agent]:
        """An agent at work while the context lasts; then it is stopped, or it crashes."""
        settings = AgentSettings(
            data_folder=self.folder,
            runtimes=("noop",),
            policy=POLICY,
            slots=2,
            name="a car",
            page_port=0,
        )
        identity = load_identity(self.folder)
        assert isinstance(identity, Identity)
        store = self.store = SqliteStore(self.folder / "record.sqlite", synchronous="NORMAL")
        adapters = Adapters(
            store=store,
            connect=self._connect,
            gateway=Gateway(self.gateway.url),
            runtimes={"noop": runtime or NoopRuntime()},
            vehicle=self._vehicle(steps),
        )
        disk = ModelDisk(self.folder / "models", 1 << 30)
        agent = Agent(settings, identity, disk, adapters)
        stop = asyncio.Event()
        running = asyncio.create_task(agent.run(stop))
        try:
            yield agent
            if running.done():
                await running
        finally:
            running.cancel() if crashes else stop.set()
            await asyncio.wait({running})
            store.close()
        if not crashes:
            await running

    async def is_permitting(self, agent: Agent) -> None:
        """Wait until the control plane may grant."""
        await until(lambda: agent.guard.state is GuardState.PERMITTING and agent.link.epoch)

    def grant(self, units: int = 1) -> int:
        """Grant a lease; its number."""
        self.leases += 1
        digest = hashlib.sha256(INPUT).digest()
        offered = tuple(
            wire.OfferedUnit(WorkUnitId(number), 2, digest, INPUT, "") for number in range(units)
        )
        grant = wire.Grant(
            lease_id=LeaseId(self.leases),
            model_id=self.model.model_id,
            manifest_address=self.model.address,
            outputs_address=OUTPUTS_ADDRESS,
            endpoint="/v1/e",
            units=offered,
        )
        self.plane.say(wire.Grants(self.plane.epoch, (grant,)))
        return self.leases

    def receipts(self) -> Mapping[tuple[int, int], wire.Receipt]:
        """What was handed in, by name; the newest of each."""
        return {
            (receipt.lease_id, receipt.receipt_id): receipt
            for message in self.plane.all(wire.Receipts)
            for receipt in message.receipts
        }

    def acknowledge(self) -> None:
        """Acknowledge everything."""
        keys = tuple((LeaseId(a), ReceiptId(b)) for a, b in self.receipts())
        self.plane.say(wire.Acknowledge(keys))

    async def settle(self, agent: Agent) -> None:
        """Acknowledge everything, and wait until the agent has forgotten it."""
        self.acknowledge()
        await until(lambda: not agent.guard.receipts() and not agent.link.receipts_waiting)

    def stored(self) -> list[str]:
        """The names of the blobs in the record."""
        assert self.store is not None
        return list(self.store.blob_names(""))

    def journal(self) -> list[ev.AnyGuardEvent]:
        """Leases and attempts as the record tells of them."""
        assert self.store is not None
        groups = (guard_codec().decode_events(entry.events) for entry in self.store.entries())
        kinds = (ev.LeaseGranted, ev.LeaseRevoked, ev.AttemptsFinished, ev.AttemptBroke)
        return [event for group in groups for event in group if isinstance(event, kinds)]

    def status(self) -> AgentStatus:
        """What the status file says."""
        status = read_status(self.folder)
        assert status is not None
        return status

    async def _connect(self) -> Bus:
        bus = MemoryBus(self.broker)
        await bus.connect()
        return bus

    def _vehicle(
        self, steps: tuple[Step, ...]
    ) -> Callable[[Clock, Callable[[int], None]], ScriptedVehicle]:
        return lambda clock, cut: ScriptedVehicle(Timetable(steps), 100, clock, cut)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(service, "LEAVE_S", 0.3)
    async with FakeGateway().open() as gateway:
        world = World(tmp_path, gateway)
        enrolment = an_enrolment(vehicle_id=VEHICLE, manifest_key=world.model.manifest_key)
        answer(gateway, ENROL_PATH, enrolment)
        await enrol(tmp_path, gateway.url, "code", "a car")
        await world.plane.open()
        yield world


async def test_a_lease_is_worked_off_and_handed_in_with_one_receipt(world: World) -> None:
    async with world.agent() as agent:
        await world.is_permitting(agent)
        lease = world.grant(units=3)
        await until(world.receipts)
        ((key, receipt),) = world.receipts().items()
        assert key == (lease, 0)
        assert [one.unit_id for one in receipt.results] == [0, 1, 2]
        assert {(one.answers, one.answers_failed) for one in receipt.results} == {(2, 0)}
        outputs = unpack(receipt.payload)
        assert [output.count(b"\n") for output in outputs.values()] == [2, 2, 2]
        assert hashlib.sha256(receipt.payload).digest() == receipt.digest
        assert agent.capability().models == (world.model.model_id,)
        await until(lambda: world.plane.all(wire.CapabilityReport))
        await world.settle(agent)
        await until(lambda: agent.status().figures.finished == 3)
        assert not world.stored()
    assert len(world.plane.all(wire.Receipts)) == 1
    assert world.plane.all(wire.Goodbye)


async def test_a_result_is_handed_in_while_the_next_attempt_runs(world: World) -> None:
    runtime = FakeRuntime()
    async with world.agent(runtime=runtime) as agent:
        await world.is_permitting(agent)
        lease = world.grant(units=2)
        await until(lambda: f"{lease}-0" in runtime.running)
        runtime.answer(f"{lease}-0", ANSWERS)
        await until(lambda: (lease, 0) in world.receipts())
        assert list(runtime.running) == [f"{lease}-1"]
        assert unpack(world.receipts()[lease, 0].payload) == {0: ANSWERS}
        world.acknowledge()
        await until(lambda: not agent.guard.receipts())
        runtime.answer(f"{lease}-1", ANSWERS)
        await until(lambda: (lease, 1) in world.receipts())
        assert unpack(world.receipts()[lease, 1].payload) == {1: ANSWERS}
        assert not agent.guard.lease_ids


async def test_a_failure_in_mid_lease_costs_no_other_result(world: World) -> None:
    runtime = FakeRuntime()
    async with world.agent(runtime=runtime) as agent:
        await world.is_permitting(agent)
        for number in (0, 2):
            runtime.answer_at_once(f"1-{number}", ANSWERS)
        runtime.at_once["1-1"] = RuntimeFailure("1-1", Failure.OUT_OF_MEMORY)
        assert world.grant(units=3) == 1
        await until(lambda: len(world.receipts()) == 3)
        first, failed, last = world.receipts().values()
        assert [one.unit_id for one in (*first.results, *last.results)] == [0, 2]
        assert (failed.receipt_id, failed.failure) == (1, Failure.OUT_OF_MEMORY)
        assert not agent.guard.lease_ids


async def test_a_large_output_is_put_and_its_receipt_follows(world: World) -> None:
    runtime = FakeRuntime()
    async with world.agent(runtime=runtime) as agent:
        await world.is_permitting(agent)
        for number, output in enumerate((ANSWERS, LARGE, ANSWERS)):
            runtime.answer_at_once(f"1-{number}", output)
        assert world.grant(units=3) == 1
        await until(lambda: len(world.receipts()) == 3)
        receipt = world.receipts()[1, 1]
        assert (receipt.payload, receipt.failure) == (b"", None)
        assert receipt.digest == hashlib.sha256(LARGE).digest()
        assert world.gateway.objects[put_path(1, 1)] == LARGE
        assert world.stored() == [output_name(*LARGE_KEY), address_name(*LARGE_KEY)]
        await world.settle(agent)
        await until(lambda: not world.stored())
    assert world.gateway.paths("PUT") == [put_path(1, 1)]


async def test_a_large_output_that_comes_too_late_leaves_nothing_behind(world: World) -> None:
    runtime = FakeRuntime()
    async with world.agent(runtime=runtime) as agent:
        await world.is_permitting(agent)
        assert world.grant(units=2) == 1
        runtime.answer_at_once("1-0", ANSWERS)
        await until(lambda: "1-1" in runtime.running)
        await until(world.receipts)
        await world.settle(agent)
        revoke = wire.Revoke(world.plane.epoch, (LeaseId(1),), LeaseEnding.BATCH_CANCELLED)
        runtime.answer("1-1", LARGE)
        agent.link.receive(Message("", wire.ENCODER.encode(revoke)))
        await until(lambda: agent.status().figures.finished == 2)
        await until(lambda: len(world.journal()) == 4)
        *_, revoked, finished = world.journal()
        assert isinstance(revoked, ev.LeaseRevoked)
        assert isinstance(finished, ev.AttemptsFinished)
        assert (finished.lease_id, finished.parcel) == (1, b"")
        await until(lambda: not world.stored())
    assert list(world.receipts()) == [(1, 0)]
    assert not world.gateway.paths("PUT")


async def test_the_status_file_tells_who_looks_at_the_car(world: World) -> None:
    async with world.agent() as agent:
        await world.is_permitting(agent)
        world.grant()
        await until(world.receipts)
        await until(lambda: world.status().figures.finished == 1)
        status = world.status()
        assert (status.process_id, status.name) == (os.getpid(), "a car")
        assert (status.state, status.refusals) == (GuardState.PERMITTING, ())
        assert (status.is_connected, status.epoch) == (True, 1)
        assert [(one.name, one.is_loaded) for one in status.models] == [("a-model", True)]
        assert status.readings is not None
        assert (status.readings.is_parked, status.readings.soc_percent) == (True, 90)
    assert world.status().refusals[0] is Refusal.AGENT_STOPPING


async def test_the_owners_return_gives_everything_back(world: World) -> None:
    runtime = FakeRuntime()
    back = Step(0.5, is_parked=False, is_driver_present=True)
    async with world.agent((PARKED, back), runtime) as agent:
        await world.is_permitting(agent)
        lease = world.grant(units=2)
        await until(lambda: runtime.running)
        await until(lambda: (lease, -1) in world.receipts())
        assert world.receipts()[lease, -1].ending is LeaseEnding.OWNER_RETURNED
        await until(lambda: agent.guard.state is GuardState.REFUSING)
        assert runtime.asked.index("suspend") < runtime.asked.index("kill")
        assert not runtime.is_up
        told = [report.refusals for report in world.plane.all(wire.PermitReport)]
        assert Refusal.DRIVER_PRESENT in told[-1]


async def test_a_clean_stop_gives_leases_back_and_says_goodbye(world: World) -> None:
    runtime = FakeRuntime()
    async with world.agent(runtime=runtime) as agent:
        await world.is_permitting(agent)
        lease = world.grant(units=2)
        await until(lambda: runtime.running)
        stopping = asyncio.create_task(until(lambda: (lease, -1) in world.receipts()))
        stopping.add_done_callback(lambda _: world.acknowledge())
    await stopping
    assert world.receipts()[lease, -1].ending is LeaseEnding.AGENT_STOPPED
    assert isinstance(world.plane.heard[-1][1], wire.Goodbye)
    assert not runtime.is_up


async def test_after_a_crash_leases_are_given_back_and_results_handed_in(world: World) -> None:
    async with world.agent() as agent:
        await world.is_permitting(agent)
        world.grant()
        await until(world.receipts)
        await world.settle(agent)
    runtime = FakeRuntime()
    async with world.agent(runtime=runtime, crashes=True) as agent:
        await world.is_permitting(agent)
        done, open_ = world.grant(units=2), world.grant()
        await until(lambda: len(runtime.running) == 2)
        runtime.answer(f"{done}-0", ANSWERS)
        await until(lambda: (done, 0) in world.receipts())
        epoch = agent.link.epoch
        before = world.receipts()[done, 0]
    world.plane.heard.clear()
    async with world.agent() as agent:
        await until(lambda: len(world.receipts()) == 3)
        assert world.receipts()[done, 0] == before
        assert unpack(before.payload) == {0: ANSWERS}
        for lease in (done, open_):
            assert world.receipts()[lease, WHOLE_LEASE].ending is LeaseEnding.AGENT_RESTARTED
        assert agent.link.epoch == epoch + 1
        await world.is_permitting(agent)
        lease = world.grant()
        await until(lambda: (lease, 0) in world.receipts())
        assert world.receipts()[lease, 0].failure is None


@pytest.mark.parametrize("crashes", [True, False])
async def test_a_large_output_is_put_by_the_process_after(world: World, crashes: bool) -> None:
    runtime = FakeRuntime()
    path = put_path(1, 1)
    async with world.agent(runtime=runtime, crashes=crashes) as agent:
        await world.is_permitting(agent)
        world.gateway.refuse(path, "storage_full", times=1_000)
        for number, output in enumerate((ANSWERS, LARGE)):
            runtime.answer_at_once(f"1-{number}", output)
        assert world.grant(units=2) == 1
        await until(lambda: world.gateway.paths("PUT"))
        await until(world.receipts)
        assert list(world.receipts()) == [(1, 0)]
    world.plane.heard.clear()
    world.gateway.answers.pop(path, None)
    async with world.agent() as agent:
        await until(lambda: len(world.receipts()) == 2)
        assert unpack(world.receipts()[1, 0].payload) == {0: ANSWERS}
        assert world.receipts()[1, 1].digest == hashlib.sha256(LARGE).digest()
        assert world.gateway.objects[path] == LARGE
        await world.settle(agent)
        await until(lambda: not world.stored())


async def test_a_link_that_is_cut_does_not_stop_the_work(world: World) -> None:
    runtime = FakeRuntime()
    cut = Step(0.4, cut_link_s=0.3)
    async with world.agent((PARKED, cut), runtime) as agent:
        await world.is_permitting(agent)
        lease = world.grant()
        await until(lambda: runtime.running)
        await until(lambda: not agent.link.is_connected)
        runtime.answer(f"{lease}-0", ANSWERS)
        await until(lambda: (lease, 0) in world.receipts())
        assert agent.link.epoch == 2
        assert world.plane.all(wire.Hello)[1].held


async def test_a_fenced_agent_drops_its_leases(world: World) -> None:
    runtime = FakeRuntime()
    async with world.agent(runtime=runtime) as agent:
        await world.is_permitting(agent)
        lease = world.grant()
        await until(lambda: runtime.running)
        world.plane.say(wire.Fenced(Epoch(1), "epoch_over"))
        await until(lambda: not agent.guard.lease_ids)
        await until(lambda: not runtime.running)
        assert f"stop {lease}-0" in runtime.asked


def prepared_folder(world: World) -> AgentSettings:
    """The settings of a car whose folder has all that it needs."""
    (world.folder / "timetable.toml").write_text("[[steps]]\nat_s = 0\nis_parked = true\n")
    (world.folder / "agent.toml").write_text('runtimes = ["noop"]\npage_port = 0\n')
    settings = load_settings(world.folder)
    assert isinstance(settings, AgentSettings)
    return settings


async def test_a_second_agent_on_one_folder_is_refused(world: World) -> None:
    settings = prepared_folder(world)
    first = asyncio.create_task(run_agent(settings))
    await until(lambda: read_status(world.folder) is not None)
    with capture_logs() as lines:
        assert await run_agent(settings) == Exit.FOLDER_IN_USE
    assert [line["event"] for line in lines] == ["folder_in_use"]
    first.cancel()
    await asyncio.wait({first})


async def test_signals_change_the_policy_and_end_the_agent(world: World) -> None:
    settings = prepared_folder(world)
    running = asyncio.create_task(run_agent(settings))
    await until(lambda: read_status(world.folder) is not None)
    (world.folder / "owner.toml").write_text("is_paused = true\n")
    signal.raise_signal(signal.SIGHUP)
    await until(lambda: Refusal.OWNER_PAUSED in world.status().refusals)
    signal.raise_signal(signal.SIGTERM)
    assert await running == Exit.STOPPED


async def test_a_car_that_is_not_enrolled_does_not_run(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert isinstance(settings, AgentSettings)
    with capture_logs() as lines:
        assert await run_agent(settings) == Exit.NOT_ENROLLED
    assert lines[0]["event"] == "not_enrolled"
    assert lines[0]["advice"]


async def test_a_record_that_can_not_be_read_is_set_aside(world: World) -> None:
    settings = prepared_folder(world)
    (world.folder / "record").mkdir()
    (world.folder / "record" / "record.sqlite").write_bytes(b"no database" * 100)
    with capture_logs() as lines:
        running = asyncio.create_task(run_agent(settings))
        await until(lambda: read_status(world.folder) is not None)
        running.cancel()
        await asyncio.wait({running})
    assert (world.folder / "record.unreadable" / "record.sqlite").exists()
    assert "record_set_aside" in [line["event"] for line in lines]
