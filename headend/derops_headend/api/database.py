"""The history for reading: a few connections, and an answer at once where there is none."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import Any, NamedTuple, Self, TypeVar

import psycopg
import structlog
from psycopg import errors

from derops.observability import Readiness
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.shares import SHARE, Places
from derops_headend.storage.disconnect import cut
from derops_headend.storage.engines import detect
from derops_headend.storage.explanations import explain
from derops_headend.storage.roles import find_unreadable
from derops_headend.storage.schema import find_state, migrations

T = TypeVar("T")

PART = "database"
"""Its name in the readiness of this program."""

CONNECTIONS = 10
"""The connections that all callers share; see ``shares``."""

STATEMENT_MILLISECONDS = 5_000
READ_SECONDS = 8.0
"""A read may have several statements, and a server that froze keeps no limit of its own."""

WAIT_SECONDS = 2.0
"""How long a new connection may take."""

TURN_SECONDS = 6.0
"""How long a caller waits for a connection; one without any is next when a statement ends."""

LOOK_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 1.0
"""How often to look while something is wrong; callers are told to wait as long."""

_BEGIN = "begin isolation level repeatable read, read only"
_LACKING = (errors.InsufficientPrivilege, errors.UndefinedTable, errors.UndefinedColumn)


class DatabaseState(NamedTuple):
    """What a look at the database found."""

    missing: str
    """Why nothing can be read, and what to do; empty = all can."""

    worse: str = ""
    """What is not as it should be and hinders nothing yet."""

    detail: str = ""
    """What it is."""


class ReadingDatabase:
    """The port ``Database``. It never migrates: a writer of the same version does.

    Connections are made by the thread that needs one. psycopg_pool would make them in the
    background: it does not tell why there is none, and returns up to two minutes after the server.
    """

    def __init__(
        self,
        url: str,
        readiness: Readiness,
        *,
        connections: int = CONNECTIONS,
        statement_milliseconds: int = STATEMENT_MILLISECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        """Prepare; ``async with`` begins to look after the database.

        Args:
            url: The URL of a role that may read.
            readiness: Is told what is missing; the program stays of use without.
            connections: The most at once.
            statement_milliseconds: The longest that a statement may take.
            read_seconds: The longest that a read may take.
        """
        self._url, self._readiness = url, readiness
        self._statement_milliseconds, self._read_seconds = statement_milliseconds, read_seconds
        self._places = Places(connections)
        # One more: looking after the database must not wait for readers.
        self._threads = ThreadPoolExecutor(connections + 1, thread_name_prefix="database")
        self._idle: deque[psycopg.Connection] = deque()
        self._missing = ""
        self._doubted = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("database")

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name="database")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await asyncio.to_thread(self._threads.shutdown)
        while self._idle:
            self._idle.pop().close()

    async def read(self, ask: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call ``ask(connection, ...)`` in a thread, in a transaction that sees one state.

        Raises:
            ProblemError: DATABASE_UNAVAILABLE: it is away, or lacks what is asked of it, or took
                too long. TOO_MANY_REQUESTS: the caller has its share of the connections.
        """
        if self._missing:
            raise unavailable()
        async with AsyncExitStack() as held:
            await self._find_place(held)
            return await self._ask(lambda connection: ask(connection, *arguments, **named))

    async def _find_place(self, held: AsyncExitStack) -> None:
        holder = SHARE.get()
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await held.enter_async_context(self._places.hold(holder))
        except TimeoutError:
            if self._places.holds(holder):
                raise ProblemError(
                    Slug.TOO_MANY_REQUESTS,
                    "Too many requests: the database answers others of yours, and none of them "
                    f"within {TURN_SECONDS:.0f} s",
                    retry_after_seconds=round(WAIT_SECONDS),
                ) from None
            raise unavailable("all connections to the database are busy: ask again") from None

    async def _ask(self, work: Callable[[psycopg.Connection], T]) -> T:
        try:
            return await self._run(work, self._read_seconds)
        except errors.QueryCanceled:
            raise self._too_slow(self._statement_milliseconds / 1000) from None
        except TimeoutError:
            self._doubted.set()
            raise self._too_slow(self._read_seconds) from None
        except psycopg.OperationalError as error:
            self._doubted.set()
            self._log.warning("database.lost", why=explain(error))
            raise unavailable() from None
        except _LACKING as error:
            self._doubted.set()
            self._log.error("database.lacking", why=explain(error))
            raise unavailable("the database lacks a table or a right that this needs") from None

    def _too_slow(self, seconds: float) -> ProblemError:
        self._log.warning("database.slow", seconds=seconds)
        return unavailable(
            f"the database took longer than {seconds:g} s: ask for less, or later",
            retry_after_seconds=max(1, round(seconds)),
        )

    async def _run(self, work: Callable[[psycopg.Connection], T], seconds: float) -> T:
        lent = _Lent()
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._call, lent, work
                )
        except (TimeoutError, asyncio.CancelledError):
            lent.cut()
            raise

    def _call(self, lent: "_Lent", work: Callable[[psycopg.Connection], T]) -> T:
        connection = self._begin(lent)
        try:
            return work(connection)
        finally:
            self._give_back(lent, connection)

    def _begin(self, lent: "_Lent") -> psycopg.Connection:
        """Return a connection with a transaction, even if the idle ones are dead."""
        while True:
            try:
                connection, is_new = self._idle.pop(), False
            except IndexError:
                connection, is_new = self._connect(), True
            try:
                lent.hold(connection)
                connection.execute(_BEGIN)
            except psycopg.OperationalError:
                lent.let_go()
                connection.close()
                if is_new:
                    raise
            else:
                return connection

    def _give_back(self, lent: "_Lent", connection: psycopg.Connection) -> None:
        try:
            connection.execute("rollback")
        except psycopg.Error:
            lent.let_go()
            connection.close()
        else:
            lent.let_go()
            self._idle.append(connection)

    def _connect(self) -> psycopg.Connection:
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=int(WAIT_SECONDS),
            application_name="derops-api",
            client_encoding="utf8",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        connection.execute(f"set statement_timeout = {self._statement_milliseconds}")
        connection.execute("set timezone = 'UTC'")
        return connection

    async def _watch(self) -> None:
        while True:
            self._doubted.clear()
            self._tell(await self._look())
            with suppress(TimeoutError):
                if self._missing:
                    await asyncio.sleep(LOOK_AGAIN_SECONDS)
                else:
                    await asyncio.wait_for(self._doubted.wait(), LOOK_SECONDS)

    async def _look(self) -> DatabaseState:
        seconds = 2 * WAIT_SECONDS
        try:
            return await self._run(look, seconds)
        except TimeoutError:
            return DatabaseState(f"it does not answer within {seconds:g} s")
        except psycopg.Error as error:
            return DatabaseState(explain(error))

    def _tell(self, state: DatabaseState) -> None:
        self._missing = state.missing
        if state.missing or state.worse:
            self._readiness.degraded(PART, state.missing or state.worse)
        else:
            self._readiness.found(PART, state.detail)


class _Lent:
    """The connection of one read; another thread can cut it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: psycopg.Connection | None = None
        self._is_cut = False

    def hold(self, connection: psycopg.Connection) -> None:
        with self._lock:
            if self._is_cut:
                raise psycopg.OperationalError("nobody waits for this any more")
            self._connection = connection

    def let_go(self) -> None:
        with self._lock:
            self._connection = None

    def cut(self) -> None:
        """End the connection, if there is one yet, and let no other be made."""
        with self._lock:
            self._is_cut = True
            if self._connection is not None:
                cut(self._connection)


def look(connection: psycopg.Connection) -> DatabaseState:
    """Return whether this program can read a database."""
    (found, readable_from), needed = find_state(connection), max(migrations())
    if not found:
        return DatabaseState(
            "no writer of derops has made its tables here: start one, or correct the URL of the API"
        )
    if found < needed:
        return DatabaseState(
            f"it has schema version {found}, this program needs {needed}: start the writer of this "
            "version, which migrates it; the API never does"
        )
    unreadable = find_unreadable(connection)
    if unreadable:
        return DatabaseState(
            f"its role may not read {', '.join(unreadable[:5])}: run what "
            '"derops-headend database roles" prints, as a superuser in that database'
        )
    if readable_from > needed:
        worse = (
            f"it is for programs of schema version {readable_from} or newer, and this one has "
            f"{needed}: upgrade the API"
        )
        return DatabaseState("", worse)
    return DatabaseState("", detail=detect(connection).description)


def unavailable(
    detail: str = "the database does not answer: what is not in it goes on",
    *,
    retry_after_seconds: int = round(LOOK_AGAIN_SECONDS),
) -> ProblemError:
    """Return the problem that callers get; the log has the cause, for whoever runs this."""
    return ProblemError(Slug.DATABASE_UNAVAILABLE, detail, retry_after_seconds=retry_after_seconds)
