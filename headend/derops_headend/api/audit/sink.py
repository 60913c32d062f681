"""Moves records from the replica's file into the database, in their order, and outlives both."""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing

import psycopg
import structlog
from psycopg import errors

from derops.backoff import back_off_seconds, spread_seconds
from derops.observability import Readiness
from derops_headend.api.audit import metrics
from derops_headend.api.audit.file import AuditFile
from derops_headend.storage.audit import store
from derops_headend.storage.chain import ChainedRecord, Head
from derops_headend.storage.explanations import explain

PART = "audit's database"
STATEMENT_MILLISECONDS = 10_000
_CHECK_SECONDS = 5.0
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 5.0
_FAULTS_OF_DATA = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded)

Connect = Callable[[], psycopg.Connection]


def connect_to(url: str) -> psycopg.Connection:
    """Return a connection for the audit that notices within 30 s that its server is gone."""
    return psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=3,
        application_name="derops-api-audit",
        client_encoding="utf8",
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=30_000,
    )


class Sink:
    """Moves the records, in a thread of its own."""

    def __init__(
        self,
        file: AuditFile,
        connect: Connect,
        readiness: Readiness,
        on_stored: Callable[[Sequence[ChainedRecord]], object],
    ) -> None:
        """Prepare.

        Args:
            file: Is read and trimmed.
            connect: Makes a connection in autocommit mode.
            readiness: Is told while the database takes nothing.
            on_stored: Is given records once they are in the database; called in the thread.
        """
        self._file, self._connect, self._readiness = file, connect, readiness
        self._on_stored = on_stored
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._place = file.begin()
        self._failures = 0
        self._log = structlog.get_logger("audit")
        self.connected = False
        self.head: Head | None = None
        """The last record that is in the database."""
        self._thread = threading.Thread(target=self._run, name="audit-sink", daemon=True)

    @property
    def behind(self) -> bool:
        """Tell whether the file has records that the database does not have."""
        return not self._file.is_end(self._place)

    def has_stored(self, head: Head) -> bool:
        """Tell whether a record of this process is in the database."""
        known = self.head
        return known is not None and known.chain == head.chain and known.seq >= head.seq

    def start(self) -> None:
        """Begin to move."""
        self._thread.start()

    def wake(self) -> None:
        """Wake the thread: there are records to move."""
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """Move the records that are there, if there is time, and end."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with closing(self._connect()) as connection:
                    connection.execute(f"set statement_timeout = {STATEMENT_MILLISECONDS}")
                    self._move(connection)
            except psycopg.Error as error:
                self.connected = False
                metrics.DATABASE_FAILURES.inc()
                self._readiness.degraded(PART, f"takes no records: {explain(error)}")
                pause = back_off_seconds(self._failures, _FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS)
                self._failures += 1
                self._stopping.wait(spread_seconds(pause))

    def _move(self, connection: psycopg.Connection) -> None:
        is_idle = True
        while True:
            self._wake.clear()
            records, after = self._file.read(self._place)
            if after != self._place:
                self._store(connection, records)
                self._place = after
                self._file.trim(after)
                self._tell(records)
            elif self._stopping.is_set():
                return
            else:
                if is_idle:
                    connection.execute("select from audit_event limit 0")
                    self._tell(records)
                is_idle = not self._wake.wait(_CHECK_SECONDS)

    def _tell(self, records: Sequence[ChainedRecord]) -> None:
        self.connected, self._failures = True, 0
        self._readiness.found(PART)
        if records:
            last = records[-1]
            self.head = Head(last.chain, last.seq, last.hash)
            metrics.STORED.inc(len(records))
            self._on_stored(records)

    def _store(self, connection: psycopg.Connection, records: Sequence[ChainedRecord]) -> None:
        """Store records; one that the database refuses does not hold up the others."""
        if not records:
            return
        try:
            conflicts = store(connection, records)
        except _FAULTS_OF_DATA as error:
            if len(records) > 1:
                middle = len(records) // 2
                self._store(connection, records[:middle])
                self._store(connection, records[middle:])
                return
            conflicts = 1
            (record,) = records
            self._log.error("audit.not_stored", record=record.body, why=explain(error))
        if conflicts:
            metrics.CONFLICTS.inc(conflicts)
            first, last = records[0], records[-1]
            self._log.error(
                "audit.conflict",
                chain=first.chain,
                first=first.seq,
                last=last.seq,
                conflicts=conflicts,
            )
