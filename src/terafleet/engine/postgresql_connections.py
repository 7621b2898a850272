"""Connections to a PostgreSQL server for callers that wait: an event loop in a thread of its own.

The ports of the record are synchronous, as the machines are. They are called from the engine's
threads, from threads that read, and from within the control plane's event loop. A connection of
asyncpg belongs to one event loop, so there is one here that nobody else uses: callers hand it
coroutines and wait. A forked child, which writes a snapshot, has no such thread and closes its
copies of the sockets, so that it can use none of the connections.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import asyncpg

from terafleet.engine.ports import StorageDamaged, StorageFull, StorageUnavailable

R = TypeVar("R")
Connection = Any
"""An `asyncpg.Connection`; the library comes without types."""

READERS_MAX = 4
CONNECT_S = 10.0
RECONNECT_S = 0.5
CLOSE_S = 2.0

SESSION_SETTINGS = {
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    # Every statement has an index; a table without statistics must not be read whole.
    "enable_seqscan": "off",
    "jit": "off",
    "lock_timeout": "2s",
    # A server whose client is gone without a word must let go of the client's lock.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25s",
}

# https://www.postgresql.org/docs/current/errcodes-appendix.html: codes, and classes of codes.
TOO_MANY_CONNECTIONS = "53300"
READ_ONLY = "25006"
FULL_CLASSES = ("53",)
DAMAGED_CODES = ("XX001", "XX002")
PASSING = (
    "08",  # The connection broke.
    "40",  # The transaction was in the way of another one.
    "55P03",  # Somebody has locked the table.
    "57",  # An operator stops the server, or the statement.
    "58",  # The server's own disk or memory failed.
    READ_ONLY,  # Another server has taken over, or a provider has met a full disk.
    TOO_MANY_CONNECTIONS,
)

logger = logging.getLogger(__name__)


class Connections:
    """One connection that works in turn, and a few beside it, which come back by themselves.

    After a loss all calls raise StorageUnavailable at once until the server is back: who calls
    from an event loop must not wait for a server that is away.
    """

    def __init__(
        self,
        url: str,
        schema: str,
        prepare: Callable[[Connection], Awaitable[None]],
        answer_s: float,
    ) -> None:
        """Connect. Raises StorageUnavailable, and what `prepare` raises.

        `prepare` gets each connection that is to work in turn before anything else does; what it
        raises later but StorageUnavailable ends all work here. Names without a schema are
        looked up in `schema`. A statement gets `answer_s` to be answered.
        """
        self._url = url
        self._schema = schema
        self._prepare = prepare
        self._answer_s = answer_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"postgresql {schema}", daemon=True
        )
        self._turn = asyncio.Lock()
        self._readers = asyncio.Semaphore(READERS_MAX)
        self._main: Connection | None = None
        self._idle: list[Connection] = []
        self._coming_back: asyncio.Task[None] | None = None
        self._reason = "not connected"
        self._is_closed = False
        self._thread.start()
        try:
            self._wait(self._open_main())
        except BaseException:
            self.close()
            raise

    def in_turn(self, work: Callable[[Connection], Awaitable[R]]) -> R:
        """Run `work` on the prepared connection, after what came before it.

        Raises StorageFull, StorageUnavailable (a change may have happened nevertheless),
        StorageDamaged, and what `prepare` raised at a return.
        """
        return self._wait(self._use_in_turn(work))

    def beside(self, work: Callable[[Connection], Awaitable[R]]) -> R:
        """Run `work` on another connection, which holds nobody up. Raises as `in_turn` does."""
        return self._wait(self._use_beside(work))

    def close(self) -> None:
        """End the connections and the thread. No other call may be under way."""
        if self._is_closed:
            return
        self._wait(self._end())
        self._is_closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, coroutine: Coroutine[Any, Any, R]) -> R:
        if self._is_closed:
            coroutine.close()
        assert not self._is_closed, "the store is closed"
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # What follows runs in the thread of the loop.

    async def _use_in_turn(self, work: Callable[[Connection], Awaitable[R]]) -> R:
        async with self._turn:
            return await self._use(self._ready(), work)

    async def _use_beside(self, work: Callable[[Connection], Awaitable[R]]) -> R:
        self._ready()
        async with self._readers:
            connection = await self._take_idle()
            try:
                return await self._use(connection, work)
            finally:
                if not connection.is_closed():
                    self._idle.append(connection)

    def _ready(self) -> Connection:
        """The connection that works in turn; raises where there is none."""
        if self._main is None:
            if self._coming_back is not None and self._coming_back.done():
                self._coming_back.result()
            raise StorageUnavailable(self._reason)
        return self._main

    async def _use(self, connection: Connection, work: Callable[[Connection], Awaitable[R]]) -> R:
        try:
            with _mapped(connection):
                return await work(connection)
        except StorageUnavailable as fault:
            if connection.is_closed():
                self._lose(fault)
            raise

    async def _take_idle(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        try:
            return await self._connect()
        except StorageUnavailable as fault:
            # A server that answers but has no place for one more is not lost.
            if isinstance(fault.__cause__, OSError):
                self._lose(fault)
            raise

    async def _connect(self) -> Connection:
        settings = {
            **SESSION_SETTINGS,
            "search_path": self._schema,
            "application_name": f"terafleet ({self._schema})",
        }
        try:
            return await asyncpg.connect(
                self._url,
                timeout=CONNECT_S,
                command_timeout=self._answer_s,
                server_settings=settings,
            )
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StorageUnavailable(_words(error)) from error

    async def _open_main(self) -> None:
        connection = await self._connect()
        try:
            with _mapped(connection):
                await self._prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        self._main = connection
        connection.add_termination_listener(self._on_end)

    def _on_end(self, connection: Connection) -> None:
        if connection is self._main:
            self._lose(StorageUnavailable("the server ended the connection"))

    def _lose(self, fault: StorageUnavailable) -> None:
        """What one connection has lost, all have; from here on nobody waits for the server."""
        if self._main is None:
            return
        logger.warning("postgresql_lost schema=%s reason=%s", self._schema, fault)
        self._reason = str(fault)
        main, self._main = self._main, None
        for connection in (main, *self._idle):
            connection.terminate()
        self._idle.clear()
        self._coming_back = self._loop.create_task(self._come_back())

    async def _come_back(self) -> None:
        while True:
            try:
                await self._open_main()
            except StorageFull as fault:
                self._reason = str(fault)
                await asyncio.sleep(RECONNECT_S)
            else:
                logger.warning("postgresql_is_back schema=%s", self._schema)
                return

    async def _end(self) -> None:
        if self._coming_back is not None:
            self._coming_back.cancel()
            await asyncio.wait([self._coming_back])
        main, self._main = self._main, None
        for connection in (*self._idle, *([] if main is None else [main])):
            try:
                await connection.close(timeout=CLOSE_S)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()


@contextlib.contextmanager
def _mapped(connection: Connection) -> Iterator[None]:
    """Turn errors of the server and of the way to it into those of the port."""
    try:
        yield
    except (OSError, asyncpg.InterfaceError) as error:
        if isinstance(error, OSError):
            # Nobody knows what has become of the statement; the connection must not go on.
            connection.terminate()
        if not connection.is_closed():
            raise
        raise StorageUnavailable(_words(error)) from error
    except asyncpg.PostgresError as error:
        code = error.sqlstate or ""
        if code == READ_ONLY:
            connection.terminate()
        if connection.is_closed() or code.startswith(PASSING):
            raise StorageUnavailable(_words(error)) from error
        if code.startswith(FULL_CLASSES):
            raise StorageFull(_words(error)) from error
        if code in DAMAGED_CODES:
            raise StorageDamaged(_words(error)) from error
        raise


def _words(error: Exception) -> str:
    """What happened, without the details that may quote a row."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
