"""A field of senders on a real headend, faults out of a seeded plan, and the check at the end."""

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from tests.faults.checker import Row, Stored, violations
from tests.faults.hostile import attack
from tests.field.headend import FieldHeadend
from tests.field.sender import Sender
from tests.stack.nats import NatsServer
from tests.stack.postgres import PostgresServer

from derops.wire.v1 import agent_pb2
from derops_headend.eventlog.jetstream import JetStreamLogReader, JetStreamSettings
from derops_headend.eventlog.sqlite import SqliteLogReader
from derops_headend.ports import LogReader

PRODUCE_SECONDS = 0.05
DRAIN_SECONDS = 120


@dataclass(slots=True)
class Report:
    """What a run did and found."""

    seed: int
    rounds: Counter[str] = field(default_factory=Counter)
    batches_sent: int = 0
    batches_acknowledged: int = 0
    rows: int = 0
    violations: list[str] = field(default_factory=list)
    longest_silence_seconds: float = 0.0

    def lines(self) -> str:
        """Return it as JSON."""
        return json.dumps(
            {
                "seed": self.seed,
                "rounds": dict(self.rounds),
                "batches_sent": self.batches_sent,
                "batches_acknowledged": self.batches_acknowledged,
                "rows": self.rows,
                "violations": len(self.violations),
                "first": self.violations[:5],
                "longest_silence_seconds": round(self.longest_silence_seconds, 2),
            }
        )


class Field:
    """Senders that produce all the time, and what may befall them."""

    def __init__(
        self,
        headend: FieldHeadend,
        server: PostgresServer,
        chance: random.Random,
        nats: NatsServer | None = None,
    ) -> None:
        self.headend, self.server, self.chance, self.nats = headend, server, chance, nats
        self.senders = [Sender(headend, asset) for asset in headend.assets[1:]]
        self._tasks: list[asyncio.Task[None]] = []
        self.faults: dict[str, Callable[[], Awaitable[None]]] = {
            "gateway killed": lambda: self._kill("gateway"),
            "writer killed": lambda: self._kill("writer"),
            "writer killed in a transaction": self._kill_writer_in_transaction,
            "database killed": self._crash_database,
            "database connections cut": self._terminate_backends,
            "database away": self._database_away,
            "gateway stopped and continued": self._freeze_gateway,
            "all links cut at once": self._storm,
            "hostile peer": lambda: attack(self.headend, self.headend.assets[0], self.chance),
        }

        if nats is not None:
            self.faults["nats-server killed"] = self._kill_nats

    async def start(self) -> None:
        await self.headend.give_desired_state()
        await asyncio.to_thread(self.headend.wait_ready, "writer")
        self._tasks = [asyncio.create_task(sender.run()) for sender in self.senders]
        self._producer = asyncio.create_task(self._produce())

    async def finish(self) -> None:
        """Stop producing; wait until all is acknowledged, and all that is, stored."""
        self._producer.cancel()
        async with asyncio.timeout(DRAIN_SECONDS):
            await asyncio.gather(*(sender.settled() for sender in self.senders))
            while not await asyncio.to_thread(self._drained):
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End all tasks."""
        for task in (self._producer, *self._tasks):
            task.cancel()
        await asyncio.gather(self._producer, *self._tasks, return_exceptions=True)

    async def acknowledged_more(self) -> None:
        """Wait until every sender heard of something new."""
        before = [sender.journal.acknowledged for sender in self.senders]
        async with asyncio.timeout(DRAIN_SECONDS):
            while any(
                sender.journal.acknowledged <= known
                for sender, known in zip(self.senders, before, strict=True)
            ):
                await asyncio.sleep(0.02)

    async def _produce(self) -> None:
        while True:
            for sender in self.senders:
                sender.produce()
            await asyncio.sleep(PRODUCE_SECONDS)

    def _drained(self) -> bool:
        with psycopg.connect(self.server.url("faults")) as connection:
            row = connection.execute("select max(committed_offset) from log_offset").fetchone()
        log: LogReader
        if self.nats is None:
            log = SqliteLogReader(self.headend.data_directory / "events.db")
        else:
            log = JetStreamLogReader(JetStreamSettings(url=self.nats.url))
        _, last = log.bounds()
        log.close()
        return row is not None and row[0] == last

    async def _kill(self, part: str) -> None:
        await asyncio.sleep(self.chance.uniform(0, 0.3))
        self.headend.parts[part].kill()
        await asyncio.to_thread(self.headend.start, part)

    async def _kill_writer_in_transaction(self) -> None:
        """Hold the offset's row, so that the writer waits in its transaction, and kill it there."""
        url = self.server.url("faults")
        with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as watcher:
            holder.execute("lock table log_offset in share row exclusive mode")
            async with asyncio.timeout(20):
                while not watcher.execute(
                    "select pid from pg_stat_activity where wait_event_type = 'Lock' "
                    "and application_name = 'derops-writer'"
                ).fetchone():
                    await asyncio.sleep(0.02)
            self.headend.parts["writer"].kill()
            holder.rollback()
        await asyncio.to_thread(self.headend.start, "writer")

    async def _crash_database(self) -> None:
        await asyncio.to_thread(self.server.crash)

    async def _database_away(self) -> None:
        self.server.process.terminate()
        await asyncio.sleep(self.chance.uniform(0.5, 2))
        await asyncio.to_thread(self.server.start_again)

    async def _terminate_backends(self) -> None:
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'derops-writer'"
            )

    async def _freeze_gateway(self) -> None:
        pid = self.headend.parts["gateway"].pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.2, 1.5))
        os.kill(pid, signal.SIGCONT)

    async def _kill_nats(self) -> None:
        assert self.nats is not None
        await asyncio.to_thread(self.nats.process.kill)
        await asyncio.to_thread(self.nats.start)

    async def _storm(self) -> None:
        for sender in self.senders:
            sender.cut()


def plan(names: list[str], rounds: int, chance: random.Random) -> list[str]:
    """Return which faults happen, in which order: each about as often as the others."""
    return [name for _ in range(rounds) for name in chance.sample(names, len(names))]


@contextlib.asynccontextmanager
async def field_of(
    directory: Path,
    server: PostgresServer,
    *,
    senders: int,
    seed: int,
    nats: NatsServer | None = None,
    environment: Mapping[str, str] | None = None,
    data_directory: Path | None = None,
) -> AsyncIterator[Field]:
    """Yield a running field; its database goes away afterwards."""
    url = server.create_database("faults")
    settings = dict(environment or {})
    if nats is not None:
        settings |= {f"DEROPS_{part}_EVENT_LOG": nats.url for part in ("GATEWAY", "WRITER")}
    try:
        with FieldHeadend(
            directory,
            assets=senders + 1,
            database_url=url,
            environment=settings,
            data_directory=data_directory,
        ) as running:
            field_ = Field(running, server, random.Random(seed), nats)
            await field_.start()
            try:
                yield field_
            finally:
                await field_.stop()
    finally:
        server.drop_database("faults")


async def run(
    directory: Path,
    server: PostgresServer,
    *,
    senders: int,
    rounds: int,
    seed: int,
    nats: NatsServer | None = None,
    only: Sequence[str] = ("",),
) -> Report:
    """Run every fault ``rounds`` times beside ``senders`` honest agents, then check.

    ``only`` has parts of the names of those that are wanted.
    """
    report = Report(seed)
    async with field_of(directory, server, senders=senders, seed=seed, nats=nats) as running:
        await running.acknowledged_more()
        names = [name for name in sorted(running.faults) if any(part in name for part in only)]
        for name in plan(names, rounds, running.chance):
            begun = time.monotonic()
            await running.faults[name]()
            await running.acknowledged_more()
            report.rounds[name] += 1
            report.longest_silence_seconds = max(
                report.longest_silence_seconds, time.monotonic() - begun
            )
        await running.finish()
        judge(running, server, report)
    return report


def judge(running: Field, server: PostgresServer, report: Report) -> None:
    """Compare journals and database, and put what was found into ``report``."""
    journals = [sender.journal for sender in running.senders]
    stored = read(server.url("faults"), hostile_uid=running.headend.assets[0].uid)
    report.batches_sent = sum(len(journal.sent) for journal in journals)
    report.batches_acknowledged = sum(journal.acknowledged for journal in journals)
    report.rows = len(stored.rows)
    report.violations = list(violations(journals, stored))


def read(url: str, *, hostile_uid: str) -> Stored:
    """Return what the database holds of the honest."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select uid, (extract(epoch from ts) * 1000000)::bigint, active_power_watts, "
            "(extract(epoch from received_at) * 1000000)::bigint "
            "from telemetry join asset using (asset_id) where uid <> %s",
            (hostile_uid,),
        ).fetchall()
        kept = connection.execute(
            "select uid, body from quarantine where kind = 1 and uid <> %s", (hostile_uid,)
        ).fetchall()
    return Stored(
        rows=tuple(
            Row(asset_uid=uid, ts_us=ts_us, watts=watts, received_us=received_us)
            for uid, ts_us, watts, received_us in rows
        ),
        quarantined=frozenset(
            (uid, agent_pb2.TelemetryBatch.FromString(body).sequence) for uid, body in kept
        ),
    )
