"""The composition root of the vehicle agent: from settings to a process that runs and ends well."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path

import structlog
import uvloop
from structlog.typing import FilteringBoundLogger

from terafleet.agent.adapters.meter.rapl import RaplMeter
from terafleet.agent.adapters.runtime import child
from terafleet.agent.adapters.runtime.noop import NoopRuntime
from terafleet.agent.adapters.vehicle.choice import (
    MakeVehicle,
    VehicleRefused,
    vehicle_maker,
)
from terafleet.agent.gateway import Gateway
from terafleet.agent.identity import Identity, IdentityRefused, load_identity
from terafleet.agent.logs import set_up_logs
from terafleet.agent.model_disk import ModelDisk
from terafleet.agent.ports import Runtime
from terafleet.agent.service import Adapters, Agent, runtime_memory_mb
from terafleet.agent.settings import AgentSettings
from terafleet.bus.adapters.nats import NatsBus
from terafleet.bus.ports import Bus, Connect, Refusal, RefusedAction
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.codec import JournalUnreadable
from terafleet.engine.ports import (
    StorageDamaged,
    StorageFull,
    StorageVersionUnknown,
    StoreInUse,
)

LOCK_FILE = "agent.lock"
RECORD_FOLDER = "record"
RECORD_FILE = "record.sqlite"
SET_ASIDE_ENDING = ".unreadable"
MODELS_FOLDER = "models"
BYTES_PER_MB = 1_000_000

log: FilteringBoundLogger = structlog.get_logger()


class Exit(IntEnum):
    """How the agent's process ends."""

    STOPPED = 0
    NOT_ENROLLED = 3
    VEHICLE_REFUSED = 4
    FOLDER_IN_USE = 5
    FOLDER_UNUSABLE = 6


class FolderInUse(Exception):
    """Another agent runs on this data folder."""


def run(settings: AgentSettings) -> int:
    """The agent's process: sets up its log, then `run_agent` in a loop of its own."""
    try:
        settings.data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = settings.data_folder / settings.log_file if settings.log_file else None
        set_up_logs(settings.log_level, path)
    except OSError as error:
        return _refuse(Exit.FOLDER_UNUSABLE, "folder_unusable", cause=str(error))
    return uvloop.run(run_agent(settings))


async def run_agent(settings: AgentSettings) -> int:
    """Run an agent until SIGTERM or SIGINT; the owner policy is read again when it changes.

    The result is the exit code of the process.
    """
    try:
        with _locked(settings.data_folder / LOCK_FILE):
            agent = _make_agent(settings)
            return agent if isinstance(agent, Exit) else await _run_until_signal(agent)
    except FolderInUse:
        return _refuse(Exit.FOLDER_IN_USE, "folder_in_use", folder=str(settings.data_folder))
    except (OSError, StorageFull) as error:
        return _refuse(Exit.FOLDER_UNUSABLE, "folder_unusable", cause=str(error))


async def _run_until_signal(agent: Agent) -> Exit:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # A terminal that is closed is no wish to stop.
    deeds = {
        signal.SIGTERM: stop.set,
        signal.SIGINT: stop.set,
        signal.SIGHUP: agent.reload_policy,
    }
    for number, deed in deeds.items():
        loop.add_signal_handler(number, deed)
    try:
        await agent.run(stop)
    finally:
        for number in deeds:
            loop.remove_signal_handler(number)
    return Exit.STOPPED


def _make_agent(settings: AgentSettings) -> Agent | Exit:
    identity = load_identity(settings.data_folder)
    if isinstance(identity, IdentityRefused):
        facts = {"detail": identity.detail, "advice": identity.advice}
        return _refuse(Exit.NOT_ENROLLED, identity.code, **facts)
    vehicle = vehicle_maker(settings.vehicle, settings.data_folder)
    if isinstance(vehicle, VehicleRefused):
        return _refuse(Exit.VEHICLE_REFUSED, "vehicle_refused", cause=vehicle.detail)
    disk = ModelDisk(settings.data_folder / MODELS_FOLDER, settings.models_mb_max * BYTES_PER_MB)
    folder = settings.data_folder / RECORD_FOLDER

    def make() -> Agent:
        folder.mkdir(mode=0o700, exist_ok=True)
        store = SqliteStore(folder / RECORD_FILE, synchronous="NORMAL")
        try:
            adapters = _adapters(settings, identity, disk, store, vehicle)
            return Agent(settings, identity, disk, adapters)
        except BaseException:
            store.close()
            raise

    try:
        return make()
    except StoreInUse:
        return _refuse(Exit.FOLDER_IN_USE, "folder_in_use", folder=str(folder))
    except (StorageVersionUnknown, StorageDamaged, JournalUnreadable) as error:
        # A car must not stand still for ever: leases end by themselves, money is not kept here.
        _set_aside(folder, str(error))
        return make()


def _adapters(
    settings: AgentSettings,
    identity: Identity,
    disk: ModelDisk,
    store: SqliteStore,
    vehicle: MakeVehicle,
) -> Adapters:
    return Adapters(
        store=store,
        connect=_connect(identity),
        gateway=Gateway(settings.gateway_url or identity.enrolment.gateway_url),
        runtimes=_runtimes(settings, disk),
        vehicle=vehicle,
        # In a car the control unit's own power, a reading, says more than its processor's.
        meters=(RaplMeter(),) if settings.vehicle.chosen == "linux" else (),
    )


def _connect(identity: Identity) -> Connect:
    def heed(refusal: Refusal) -> None:
        if refusal.action is RefusedAction.CONNECT:
            identity.renew_soon()

    async def connect() -> Bus:
        enrolment = identity.enrolment
        bus = NatsBus(enrolment.bus_urls, identity.credentials, enrolment.vehicle_id)
        bus.on_refusal(heed)
        await bus.connect()
        return bus

    return connect


def bare_noop() -> Runtime:
    """The runtime that does nothing, alone: what benchmarks compare a whole fleet with."""
    return NoopRuntime()


def _runtimes(settings: AgentSettings, disk: ModelDisk) -> Mapping[str, Runtime]:
    walls = child.ChildSettings(
        models_folder=disk.names,
        slots=settings.slots,
        threads=settings.runtime_threads,
        memory_bytes=runtime_memory_mb(settings) * BYTES_PER_MB,
    )
    return {
        kind: NoopRuntime() if kind == "noop" else child.ChildRuntime(kind, walls)
        for kind in settings.runtimes
    }


def _refuse(code: Exit, event: str, **facts: str) -> Exit:
    """Say why the agent does not run."""
    log.error(event, **facts)
    return code


def _set_aside(folder: Path, cause: str) -> None:
    log.error("record_set_aside", cause=cause)
    aside = folder.with_name(folder.name + SET_ASIDE_ENDING)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a data folder. Raises FolderInUse."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUse from error
        yield
    finally:
        os.close(descriptor)
