"""A field on a real headend that sends all the time, and what befalls it."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import psycopg
from tests.faults.faults import NOTHING, Fault
from tests.faults.ground import Ground, failing_syncs, filled
from tests.faults.hostile import attack
from tests.faults.reading import last_offsets
from tests.field.headend import FieldHeadend
from tests.field.journal import Journal
from tests.field.recorder import RecordedAgents
from tests.field.sender import Sender
from tests.stack.processes import Process, StackError

from derops_headend.eventlog.jetstream import JetStreamLogReader, JetStreamSettings
from derops_headend.eventlog.ports import LogReader
from derops_headend.eventlog.sqlite import SqliteLogReader

DATABASE = "faults"
PRODUCE_SECONDS = 0.1
MAX_WAITING = 60
"""Batches of one sender: a longer outage adds nothing but time to catch up."""

PATIENCE_SECONDS = 120
_FULL = 0.95
_ROOM_SECONDS = 5.0
_BURST_SAMPLES = 100
_OF_AGENTS = ("agent killed", "agent ended", "agent stopped and continued", "links silent")
_LOCKED = ("log_offset", "telemetry", "measurement", "roll_up_due")
"""The writer stands at the begin of its transaction, or with rows in it."""


class Field:
    """Senders that produce all the time, and what may befall them."""

    def __init__(self, headend: FieldHeadend, ground: Ground) -> None:
        self.headend, self.server, self.nats = headend, ground.server, ground.nats
        self._disk = ground.disk
        self.hostile, *honest = headend.assets
        self.senders = [Sender(headend, asset) for asset in honest[: ground.senders]]
        self.agents = RecordedAgents(headend, honest[ground.senders :])
        self._agents = ground.agents
        self._tasks: list[asyncio.Task[None]] = []
        self.restarted_at = 0.0
        """Monotonic seconds when the latest fault was over."""
        self._acts: dict[str, Callable[[Fault], Awaitable[None]]] = {
            NOTHING: lambda _: asyncio.sleep(0),
            "gateway killed": lambda _: self._kill("gateway"),
            "gateway stopped and continued": self._stop_gateway,
            "gateway ended": lambda _: self._end("gateway"),
            "writer killed": lambda _: self._kill("writer"),
            "writer ended": lambda _: self._end("writer"),
            "writer killed in a transaction": self._kill_writer_in_transaction,
            "writer killed, its session in the database stopped": self._orphan_session,
            "writer stopped and continued": self._stop_writer,
            "agent killed": self._kill_agent,
            "agent ended": self._end_agent,
            "agent stopped and continued": self._stop_agent,
            "database killed": lambda _: self._blocking(self.server.crash),
            "database away": self._database_away,
            "database stopped and continued": self._stop_database,
            "database connections cut": lambda _: self._blocking(self._cut_sessions),
            "everything killed at once": self._kill_everything,
            "all links cut at once": self._storm,
            "links silent": self._silence,
            "outboxes overflow": self._overflow,
            "hostile peer": self._attack,
            "nats-server killed": self._kill_nats,
            "nats-server stopped and continued": self._stop_nats,
            "log full": self._log_full,
            "log full, gateway killed": self._log_full,
            "disk full": self._disk_full,
            "disk full, gateway killed": self._disk_full,
            "disk error": self._disk_error,
            "disk error, gateway killed": self._disk_error,
        }

    @property
    def journals(self) -> list[Journal]:
        """What was sent and acknowledged, of all honest."""
        return [*(sender.journal for sender in self.senders), *self.agents.journals]

    async def start(self) -> None:
        """Begin to send."""
        await self.headend.give_desired_state()
        await self._blocking(lambda: self.headend.wait_ready("writer"))
        if self._agents:
            await self.agents.recorder.start()
            await self._blocking(self.agents.start)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while sum(each.acknowledged > 0 for each in self.agents.journals) < self._agents:
                    await asyncio.sleep(0.05)
        self._tasks = [asyncio.create_task(sender.run()) for sender in self.senders]
        self._producer = asyncio.create_task(self._produce())

    async def strike(self, fault: Fault) -> None:
        """Let one fault happen; what was killed runs again on return."""
        await asyncio.sleep(fault.after_seconds)
        self.restarted_at = 0.0
        await self._acts[fault.name](fault)
        self.restarted_at = self.restarted_at or time.monotonic()

    async def recovered(self, fault: Fault) -> tuple[float, float]:
        """Wait until all whom a fault concerned were acknowledged something sent since its end.

        Returns:
            Seconds from its end until the first of them was, and the last.
        """
        journals = [sender.journal for sender in self.senders]
        if fault.name in _OF_AGENTS:
            journals = self.agents.journals
        async with asyncio.timeout(PATIENCE_SECONDS):
            while None in (heard := [each.heard_after(self.restarted_at) for each in journals]):
                await asyncio.sleep(0.02)
        seconds = [at - self.restarted_at for at in heard if at is not None]
        return min(seconds), max(seconds)

    async def finish(self) -> None:
        """Stop producing; wait until all is acknowledged, and all that is, stored."""
        self._producer.cancel()
        if self._agents:
            await self._blocking(self.agents.process.terminate)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(sender.settled() for sender in self.senders))
            while not await asyncio.to_thread(self._drained):
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End all tasks."""
        for task in (self._producer, *self._tasks):
            task.cancel()
        await asyncio.gather(self._producer, *self._tasks, return_exceptions=True)
        if self._agents:
            await self._blocking(self.agents.process.terminate)
            await self.agents.recorder.stop()

    def open_log(self) -> LogReader:
        """Return the log as a writer sees it."""
        if self.nats is None:
            return SqliteLogReader(self.headend.data_directory / "events.db")
        return JetStreamLogReader(JetStreamSettings(url=self.nats.url))

    async def gauge(
        self, name: str, least: float, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until a gauge of the gateway is at least so much."""
        async with asyncio.timeout(patience_seconds):
            while (await asyncio.to_thread(self.headend.metrics, "gateway"))[name] < least:
                await asyncio.sleep(0.05)

    async def fill_log(self) -> None:
        """Send more than usual until the log is full."""
        name = "derops_gateway_log_fill_ratio"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await asyncio.to_thread(self.headend.metrics, "gateway"))[name] < _FULL:
                for sender in self.senders:
                    if sender.waiting < MAX_WAITING:
                        sender.produce(_BURST_SAMPLES)
                await asyncio.sleep(0.02)

    async def _produce(self) -> None:
        while True:
            for sender in self.senders:
                if sender.waiting < MAX_WAITING:
                    sender.produce()
            await asyncio.sleep(PRODUCE_SECONDS)

    def _drained(self) -> bool:
        with contextlib.closing(self.open_log()) as log:
            committed, last = last_offsets(self.server.url(DATABASE), log)
        return committed == last

    async def _blocking(self, work: Callable[[], object]) -> None:
        await asyncio.to_thread(work)

    # Processes

    async def _kill(self, part: str) -> None:
        self.headend.parts[part].kill()
        await self._start(lambda: self.headend.start(part))

    async def _end(self, part: str) -> None:
        """Ask a part to end, in the midst of its work: it must, and well."""
        await self._blocking(lambda: _end_well(self.headend.parts[part]))
        await self._start(lambda: self.headend.start(part))

    async def _start(self, start: Callable[[], object]) -> None:
        self.restarted_at = time.monotonic()
        await self._blocking(start)

    async def _stop_gateway(self, fault: Fault) -> None:
        await self._freeze([self.headend.parts["gateway"].pid], fault)

    async def _stop_writer(self, fault: Fault) -> None:
        await self._freeze([self.headend.parts["writer"].pid], fault)

    async def _freeze(self, pids: Sequence[int], fault: Fault) -> None:
        _signal(pids, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.lasts_seconds)
        finally:
            _signal(pids, signal.SIGCONT)

    async def _kill_everything(self, fault: Fault) -> None:
        processes = [*self.headend.parts.values()]
        if self.nats is not None:
            processes.append(self.nats.process)
        random.Random(fault.choice).shuffle(processes)
        for process in processes:
            process.kill()
        await self._start(self.server.crash)
        if self.nats is not None:
            await self._blocking(self.nats.start)
        parts = self.headend.parts
        await asyncio.gather(*(asyncio.to_thread(self.headend.start, part) for part in parts))

    async def _kill_agent(self, fault: Fault) -> None:
        self.agents.process.kill()
        await asyncio.sleep(fault.lasts_seconds)
        await self._start(self.agents.start)

    async def _end_agent(self, fault: Fault) -> None:
        await self._blocking(lambda: _end_well(self.agents.process))
        await asyncio.sleep(fault.lasts_seconds)
        await self._start(self.agents.start)

    async def _stop_agent(self, fault: Fault) -> None:
        await self._freeze([self.agents.process.pid], fault)

    async def _kill_nats(self, _: Fault) -> None:
        assert self.nats is not None
        await self._blocking(self.nats.process.kill)
        await self._start(self.nats.start)

    async def _stop_nats(self, fault: Fault) -> None:
        assert self.nats is not None
        await self._freeze([self.nats.process.pid], fault)

    # The database

    async def _kill_writer_in_transaction(self, fault: Fault) -> None:
        """Lock a table, so that the writer waits in its transaction, and kill it there."""
        url = self.server.url(DATABASE)
        table = _LOCKED[fault.choice % len(_LOCKED)]
        with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as watcher:
            await self._blocking(
                lambda: holder.execute(f"lock table {table} in share row exclusive mode")
            )
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not watcher.execute(
                    "select pid from pg_stat_activity where wait_event_type = 'Lock' "
                    "and application_name = 'derops-writer'"
                ).fetchone():
                    await asyncio.sleep(0.02)
            self.headend.parts["writer"].kill()
            holder.rollback()
        await self._start(lambda: self.headend.start("writer"))

    async def _orphan_session(self, fault: Fault) -> None:
        """Stop the writer's session where it stands, kill the writer, and let it go on later."""
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            rows = connection.execute(
                "select pid from pg_stat_activity where application_name = 'derops-writer'"
            ).fetchall()
        pids = [pid for (pid,) in rows]
        _signal(pids, signal.SIGSTOP)
        try:
            await self._kill("writer")
            await asyncio.sleep(fault.lasts_seconds)
        finally:
            _signal(pids, signal.SIGCONT)

    async def _database_away(self, fault: Fault) -> None:
        await self._blocking(self.server.process.terminate)
        await asyncio.sleep(fault.lasts_seconds)
        await self._start(self.server.start_again)

    async def _stop_database(self, fault: Fault) -> None:
        await self._freeze([self.server.process.pid, *_children(self.server.process.pid)], fault)

    def _cut_sessions(self) -> None:
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'derops-writer'"
            )

    # Links and peers

    async def _storm(self, _: Fault) -> None:
        for sender in self.senders:
            sender.cut()
        self.agents.recorder.cut()

    async def _silence(self, fault: Fault) -> None:
        self.agents.recorder.silence()
        try:
            await asyncio.sleep(fault.lasts_seconds)
        finally:
            self.agents.recorder.resume()

    async def _overflow(self, fault: Fault) -> None:
        """Without a gateway outboxes fill; each third drops the older half, and says so."""
        self.headend.parts["gateway"].kill()
        await asyncio.sleep(fault.lasts_seconds)
        for sender in self.senders[fault.choice % 3 :: 3]:
            sender.drop()
        await self._start(lambda: self.headend.start("gateway"))

    async def _attack(self, fault: Fault) -> None:
        await attack(self.headend, self.hostile, random.Random(fault.choice))

    # Log and disk

    async def _log_full(self, fault: Fault) -> None:
        await self._blocking(self.server.process.terminate)
        await self.fill_log()
        if fault.name.endswith("gateway killed"):
            await self._kill("gateway")
        await self._start(self.server.start_again)

    async def _disk_full(self, fault: Fault) -> None:
        assert self._disk is not None
        with filled(self._disk):
            # A log whose files have room inside goes on to take what comes.
            with contextlib.suppress(TimeoutError):
                await self.gauge("derops_gateway_log_failing", 1, _ROOM_SECONDS)
            await self._kill_gateway_or_not(fault)
        await self._wait_live()

    async def _disk_error(self, fault: Fault) -> None:
        with failing_syncs(self.headend.parts["gateway"].pid, self.headend.directory):
            await self.gauge("derops_gateway_log_failing", 1)
            await self._kill_gateway_or_not(fault)
        await self._wait_live()

    async def _kill_gateway_or_not(self, fault: Fault) -> None:
        if fault.name.endswith("gateway killed"):
            self.headend.parts["gateway"].kill()
            self.headend.parts["gateway"].start()
        await asyncio.sleep(fault.lasts_seconds)

    async def _wait_live(self) -> None:
        self.restarted_at = time.monotonic()
        await self._blocking(lambda: self.headend.wait_live("gateway"))


@asynccontextmanager
async def played(ground: Ground) -> AsyncIterator[Field]:
    """Run headend and field on a database of their own."""
    url = ground.server.create_database(DATABASE)
    try:
        with FieldHeadend(
            ground.directory,
            assets=1 + ground.senders + ground.agents,
            database_url=url,
            environment=ground.settings(),
            data_directory=ground.disk,
        ) as headend:
            running = Field(headend, ground)
            await running.start()
            try:
                yield running
            finally:
                await running.stop()
    finally:
        ground.server.drop_database(DATABASE)


def _end_well(process: Process) -> None:
    """Send SIGTERM and wait; raise where the program says that it did not end well."""
    code = process.terminate()
    if code != 0:
        raise StackError(f"{process.name} ended with {code}\n{process.log_tail()}")


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]
