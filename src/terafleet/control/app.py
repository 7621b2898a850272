"""Puts a control plane together from its parts and keeps it running; the only place that does."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog
import uvloop
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from litestar import Litestar

from terafleet.bus.adapters.nats import NatsBus
from terafleet.bus.credentials import KeyFileUnsafe, KeyInvalid, NKey, OperatorKeys, UserCredentials
from terafleet.bus.nats_server import NatsServer, NatsServerFailed, NatsServerMissing, PortInUse
from terafleet.bus.ports import Bus, BusRefused, BusUnavailable
from terafleet.control.adapters.catalogue_sqlite import SqliteCatalogue
from terafleet.control.adapters.objects_folder import FolderObjects
from terafleet.control.data_folder import ControlSecrets, DataFolder, DataFolderUnknown
from terafleet.control.database_address import (
    ADVICE,
    PASSWORD_ADVICE,
    SQLITE,
    DatabaseAddressUnusable,
    database_address,
)
from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.canary import Canary
from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.health import Watch
from terafleet.control.gateway.keys import key_row, sha256_of
from terafleet.control.gateway.live.sessions import LiveSessions
from terafleet.control.gateway.work import GatewayWorkHandler
from terafleet.control.http_server import HttpServer, bounds_here
from terafleet.control.ports import (
    Catalogue,
    CatalogueFull,
    CatalogueUnavailable,
    CatalogueUnreadable,
    Objects,
)
from terafleet.control.settings import ControlSettings
from terafleet.control.shard.shard import Shard, ShardPorts
from terafleet.core.ids import GatewayId
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.codec import JournalUnreadable
from terafleet.engine.ports import (
    StorageDamaged,
    StorageFull,
    StorageUnavailable,
    StorageVersionUnknown,
    Store,
    StoreInUse,
)
from terafleet.protocol.agent import down_subject, up_subject
from terafleet.protocol.manifest import SignedManifest
from terafleet.protocol.sessions import publish_subjects

log = structlog.get_logger(__name__)

CREDENTIAL_S = 86_400
"""A car's credential is good for a day: a stolen one ends by itself, a renewal is cheap."""

BUS_RESTART_S = 1.0
BUS_CONNECT_S = 30.0
OBJECTS_BYTES_FREE_MIN = 1024 * 1024 * 1024
OPERATOR = "operator"
OPERATOR_KEY_ID = "key-operator"


UNUSABLE_DATA = (
    CatalogueFull,
    CatalogueUnreadable,
    DataFolderUnknown,
    JournalUnreadable,
    KeyFileUnsafe,
    KeyInvalid,
    StorageDamaged,
    StorageFull,
    StorageVersionUnknown,
)
"""What opening the data can meet; each says in words what it is."""


UNUSABLE_BUS = (BusRefused, BusUnavailable, NatsServerFailed, NatsServerMissing, TimeoutError)


class StartFailed(Exception):
    """The control plane could not start; the message says what to do."""


def run(settings: ControlSettings) -> int:
    """Run a control plane until it is told to stop. Returns the exit code."""
    _set_up_logs(settings.log_level)
    try:
        uvloop.run(_run(settings))
    except StartFailed as fault:
        sys.stderr.write(f"error: {fault}\n")
        return 1
    return 0


async def _run(settings: ControlSettings) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with ControlPlane(settings).running() as plane:
        log.info("control_plane_ready", url=plane.url, data=str(settings.data))
        ending = asyncio.create_task(stopping.wait())
        await asyncio.wait({ending, *plane.tasks}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        for task in plane.tasks:
            if task.done():
                # A part that ends by itself has met a bug; it is raised here.
                task.result()


class ControlPlane:
    """One gateway and one shard in one process, with a bus of their own or a given one."""

    def __init__(self, settings: ControlSettings) -> None:
        self.settings = settings
        self.url = ""
        self.tasks: list[asyncio.Task[None]] = []
        self._is_storage_full = False
        self._place = "the data folder"
        """Where the data are, in words that hold nothing secret."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ControlPlane"]:
        """Start all parts, and stop them in the other order. Raises StartFailed."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                await self._start(stack)
            except StoreInUse as fault:
                raise StartFailed(f"{self._place} is in use: {fault}") from fault
            except (StorageUnavailable, CatalogueUnavailable) as fault:
                advice = f"Start it, or give another address with --database. {PASSWORD_ADVICE}"
                raise StartFailed(f"{self._place} can't be used: {fault}. {advice}") from fault
            except UNUSABLE_DATA as fault:
                raise StartFailed(f"{self._place} can't be used: {fault}") from fault
            except PortInUse as fault:
                raise StartFailed(f"{fault}; choose another with --bus-listen") from fault
            except (
                NatsServerMissing,
                NatsServerFailed,
                BusRefused,
                BusUnavailable,
                TimeoutError,
            ) as fault:
                raise StartFailed(f"the message bus: {fault}") from fault
            except OSError as fault:
                cause = f"{fault.filename or self.settings.data}: {fault.strerror or fault}"
                raise StartFailed(f"the data folder can't be used: {cause}") from fault
            yield self

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        listener = _listen(settings.listen_host, settings.listen_port)
        stack.callback(listener.close)
        port = listener.getsockname()[1]
        self.url = settings.advertise_url or f"http://{settings.listen_host}:{port}"
        folder = DataFolder(settings.data)
        keys = folder.secrets()
        store, catalogue = self._open_record(stack, folder)
        _keep_operator_key(catalogue, keys.operator_key)
        objects = open_objects(folder.objects)
        bus_urls = settings.bus_urls or await self._start_bus(stack, folder, keys)
        bus = await connect_bus(bus_urls, keys.bus, "control-plane")
        stack.push_async_callback(bus.close)
        ports = ShardPorts(bus, store, objects, keys.address_secret, secrets.token_hex(4))
        shard = Shard(ports, settings.shard, self._set_storage_full)
        stack.push_async_callback(shard.stop)
        self.tasks.append(asyncio.create_task(shard.run(), name="shard"))
        live = LiveSessions(
            bus, GatewayId(secrets.token_hex(8)), _monotonic_ms, lambda: secrets.token_hex(12)
        )
        await live.start()
        context = GatewayContext(
            bus=bus,
            live=live,
            catalogue=catalogue,
            objects=objects,
            limits=settings.limits,
            address_secret=keys.address_secret,
            manifest_key=_public_bytes(keys),
            bus_urls=settings.bus_advertise_urls or tuple(bus_urls),
            now_ms=lambda: time.time_ns() // 1_000_000,
            new_id=lambda: secrets.token_hex(12),
            sign_manifest=lambda body: SignedManifest(body, keys.manifest_key.sign(body)),
            issue_credential=lambda vehicle_id, key: _issue(keys, vehicle_id, key),
            is_storage_full=lambda: self._is_storage_full,
        )
        if settings.gateway_work_at_once:
            worker = GatewayWorkHandler(context, at_once_max=settings.gateway_work_at_once)
            await worker.start()
            stack.push_async_callback(worker.close)
        canary = self._start_canary(stack, context)
        app = create_app(context, Watch(canary, settings.is_metrics_open))
        await self._serve(stack, app, listener)
        # Before the server, which waits until all that is open has been answered.
        stack.push_async_callback(live.stop)
        _keep_url(folder.url, self.url + "\n")

    def _open_record(
        self, stack: contextlib.AsyncExitStack, folder: DataFolder
    ) -> tuple[Store, Catalogue]:
        """Open them in the data folder, or where the settings say."""
        url = self.settings.database_url or f"{SQLITE}{folder.record}"
        try:
            address = database_address(url)
        except DatabaseAddressUnusable as fault:
            raise StartFailed(f"{fault} {ADVICE} {PASSWORD_ADVICE}") from fault
        store: Store
        catalogue: Catalogue
        if address.path is not None:
            store = SqliteStore(address.path)
            stack.callback(store.close)
            catalogue = SqliteCatalogue(folder.catalogue)
        else:
            # Their library is an extra, which nobody else needs.
            from terafleet.control.adapters.catalogue_postgresql import PostgresqlCatalogue
            from terafleet.engine.adapters.postgresql import PostgresqlStore

            self._place = f"the database {address.shown}"
            store = PostgresqlStore(url)
            stack.callback(store.close)
            catalogue = PostgresqlCatalogue(url)
        stack.callback(catalogue.close)
        return store, catalogue

    async def _start_bus(
        self, stack: contextlib.AsyncExitStack, folder: DataFolder, keys: ControlSecrets
    ) -> tuple[str, ...]:
        settings = self.settings
        server = NatsServer(
            folder.bus, settings.bus_listen_host, settings.bus_listen_port, keys.bus
        )
        await server.start()
        stack.push_async_callback(server.stop)
        watching = asyncio.create_task(_keep_bus(server), name="bus")
        stack.push_async_callback(_cancel, watching)
        self.tasks.append(watching)
        return (server.url,)

    def _start_canary(
        self, stack: contextlib.AsyncExitStack, context: GatewayContext
    ) -> Canary | None:
        settings = self.settings.canary
        if not settings.period_ms:
            return None
        canary = Canary(context, settings)
        sending = asyncio.create_task(canary.run(), name="canary")
        stack.push_async_callback(_cancel, sending)
        self.tasks.append(sending)
        return canary

    async def _serve(
        self,
        stack: contextlib.AsyncExitStack,
        app: Litestar,
        listener: socket.socket,
    ) -> None:
        server = HttpServer(app, bounds_here())
        task = asyncio.create_task(server.serve([listener]), name="gateway")
        self.tasks.append(task)
        await asyncio.wait(
            {task, asyncio.create_task(server.ready.wait())}, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            task.result()

        async def stop() -> None:
            server.should_exit = True
            await task

        stack.push_async_callback(stop)

    def _set_storage_full(self, is_full: bool) -> None:
        self._is_storage_full = is_full
        log.warning("storage_full" if is_full else "storage_has_room_again")


def _set_up_logs(level: str) -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything else is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as fault:
        listener.close()
        raise StartFailed(
            f"can't listen on {host}:{port} ({os.strerror(fault.errno or 0)}); "
            "choose another with --listen"
        ) from fault
    return listener


def open_objects(path: Path) -> Objects:
    """The objects below a folder; they leave room for the record beside them."""
    return FolderObjects(path, OBJECTS_BYTES_FREE_MIN)


async def connect_bus(urls: Sequence[str], keys: OperatorKeys, name: str) -> Bus:
    """A connection that may speak and listen everywhere, as gateways and shards do."""
    key = NKey.generate()

    def credentials() -> UserCredentials:
        now_s = int(time.time())
        jwt = keys.user_jwt(key.public, name, [">"], [">"], CREDENTIAL_S, now_s)
        return UserCredentials(jwt, key.sign)

    bus = NatsBus(list(urls), credentials, name)
    async with asyncio.timeout(BUS_CONNECT_S):
        await bus.connect()
    return bus


async def _keep_bus(server: NatsServer) -> None:
    """Start the bus anew whenever it ends; all sides connect again by themselves."""
    while True:
        await asyncio.sleep(BUS_RESTART_S)
        if not server.is_running:
            log.error("bus_ended_starting_again")
            # Whatever is in the way now, such as a full disk, may be out of it a second later.
            with contextlib.suppress(NatsServerFailed, PortInUse, OSError):
                await server.start()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _issue(keys: ControlSecrets, vehicle_id: str, public_key: str) -> tuple[str, int]:
    """A car's credential: it may speak and listen on its own subjects, nothing else."""
    now_s = int(time.time())
    jwt = keys.bus.user_jwt(
        public_key,
        vehicle_id,
        [up_subject(vehicle_id), publish_subjects(vehicle_id)],
        [down_subject(vehicle_id)],
        CREDENTIAL_S,
        now_s,
    )
    return jwt, now_s + CREDENTIAL_S


def _keep_url(path: Path, line: str) -> None:
    """Tell commands where the control plane is; one that begins with a full disk still begins."""
    with contextlib.suppress(OSError):
        if path.read_text("utf-8") == line:
            return
    try:
        path.write_text(line, encoding="utf-8")
    except OSError as fault:
        log.warning("url_not_written", path=str(path), cause=fault.strerror)


def _monotonic_ms() -> int:
    """For sessions, which outlive no process; a step of the wall clock must not end them."""
    return time.monotonic_ns() // 1_000_000


def _public_bytes(keys: ControlSecrets) -> bytes:
    return keys.manifest_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _keep_operator_key(catalogue: Catalogue, secret: str) -> None:
    """The first operator's key lies in the data folder; the catalogue knows it by its hash.

    Who removes that file gets a fresh key, and the one before is good for nothing any more.
    """
    digest = sha256_of(secret)
    if catalogue.key_by_secret(digest) is not None:
        return
    now_ms = time.time_ns() // 1_000_000
    rows = catalogue.keys()
    before = [row.key_id for row in rows if row.key_id.startswith(OPERATOR_KEY_ID)]
    for key_id in before:
        catalogue.revoke_key(key_id, now_ms)
    key_id = f"{OPERATOR_KEY_ID}-{digest.hex()[:8]}" if before else OPERATOR_KEY_ID
    catalogue.add_key(key_row(key_id, secret, OPERATOR, OPERATOR, OPERATOR, now_ms))
