"""The product's stores, driven and read through their real API.

Each can say all that it holds as one state, take a random step, and judge what it holds after loss
of power: what was told last, or what was being done then and was told next; nothing else.
"""

import asyncio
import os
import random
import signal
import sqlite3
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import Message
from tests.agent.fakes import FakeClock, FakeListener, FakeOutlet, asset, inline, order
from tests.powerloss.recording import State, Told

from derops.ids import AssetName
from derops.lifecycle import Phase
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2, log_pb2
from derops_agent.asset.journal import Journal
from derops_agent.asset.ledger import Ledger
from derops_agent.execution.state import Execution, Stage
from derops_agent.execution.wire import read_order
from derops_agent.ports import Reading
from derops_agent.telemetry.outbox_store import OutboxStore
from derops_headend.eventlog.sqlite import SqliteEventLog
from derops_headend.fleet.desired import Revision, Snapshot, Written
from derops_headend.gateway.desired_store import DesiredStore

_CHECKPOINT_OFTEN = "PRAGMA wal_autocheckpoint = 12"  # pages
_BEGAN_US = 1_800_000_000_000_000

Losing = Callable[[], None]


class Store(Protocol):
    """One of the product's stores, open."""

    def state(self) -> State:
        """Return all that it holds."""

    def step(self, rng: random.Random) -> None:
        """Do something that it is for."""

    def hurt(self, rng: random.Random, losing: Losing) -> None:
        """Do what makes it begin anew, after ``losing``; nothing where it never does."""

    def close(self) -> None:
        """Close its files."""

    @staticmethod
    def problems(found: State, told: Sequence[Told], after: State | None) -> list[str]:
        """Judge what is there after loss of power.

        Args:
            found: What it holds.
            told: What anybody was told before, in order.
            after: What was told next in the recording, None where that was the end.
        """


class AgentOutbox:
    """Two assets of one process."""

    _ASSETS = ("one", "two")

    def __init__(self, folder: Path) -> None:
        self._file = folder / "agent" / "outbox.db"
        self._store = OutboxStore(self._file, max_bytes=20_000)
        self._store._db.execute(_CHECKPOINT_OFTEN)
        self._outboxes = {
            name: self._store.open(AssetName("ns", name), FakeListener()) for name in self._ASSETS
        }

    def state(self) -> State:
        return {
            name: {
                "id": outbox.outbox_id,
                "last": outbox.stored_sequence,
                "rows": [
                    [sequence, zlib.crc32(row)] for sequence, row in outbox.read(0, 2**62, 10_000)
                ],
            }
            for name, outbox in self._outboxes.items()
        }

    def step(self, rng: random.Random) -> None:
        for outbox in self._outboxes.values():
            if rng.random() < 0.3:
                rows = outbox.read(0, 2**62, 10_000)
                outbox.acknowledge(rng.choice([0, *(sequence for sequence, _ in rows)]))
            for _ in range(rng.choice((0, 1, 1, 10, 150))):
                outbox.add(Reading(at_us=rng.getrandbits(40), values={1: rng.random()}))
        self._store.flush()

    def hurt(self, rng: random.Random, losing: Losing) -> None:
        losing()
        if rng.random() < 0.3:
            self._store.begin_anew(self._store.replace(sqlite3.DatabaseError("damaged")))
            return
        if rng.random() < 0.5:
            self._store.close()
        with self._file.open("r+b", buffering=0) as file:
            file.write(b"\xff" * 4096)
            os.fsync(file)
        os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        self._store.close()

    @staticmethod
    def problems(found: State, told: Sequence[Told], after: State | None) -> list[str]:
        is_new = not any(outbox["rows"] or outbox["last"] for outbox in found.values())
        used = {outbox["id"] for each in told for outbox in each.state.values()}
        is_new = is_new and not any(outbox["id"] in used for outbox in found.values())
        return _judge(found, told, after, is_new=is_new)


class AgentLedger:
    """One asset's ledger under its journal."""

    def __init__(self, folder: Path) -> None:
        self._ledger = Ledger(folder / "agent" / "ns_battery" / "ledger.db")
        self._ledger._db.execute(_CHECKPOINT_OFTEN)
        self._clock = FakeClock(wall_us=time.time_ns() // 1000)
        self._journal = Journal(self._ledger, self._clock, inline, FakeOutlet())
        self._journal.believes_clock = True
        asyncio.run(self._journal.load())

    def state(self) -> State:
        ledger = self._ledger
        configured, revision = ledger.asset(), ledger.revision
        return {
            "id": ledger.ledger_id,
            "epoch": ledger._meta("epoch"),
            "report_sequence": ledger.report_sequence,
            "alive": [ledger.alive.at_us, ledger.alive.boot_id],
            "revision": [revision.era, revision.operator_start_ms, revision.counter],
            "asset": configured and _digest(configured),
            "unsettled": sorted(map(_summary, ledger.unsettled())),
            "settled": sorted(_summary(ledger.tombstone(uid)) for uid in self._settled()),
        }

    def step(self, rng: random.Random) -> None:
        self._clock.pass_seconds(rng.choice((1, 60, 100_000)))
        acts = (self._accept, self._move, self._keep, self._settle, self._configure, self._connect)
        asyncio.run(rng.choice(acts)(rng))

    def hurt(self, rng: random.Random, losing: Losing) -> None:
        """A ledger never begins anew."""

    def close(self) -> None:
        self._ledger.close()

    @staticmethod
    def problems(found: State, told: Sequence[Told], after: State | None) -> list[str]:
        is_new = not (found["epoch"] or found["alive"][0] or found["unsettled"])
        return _judge(found, told, after, is_new=is_new)

    def _settled(self) -> list[str]:
        query = "SELECT uid FROM execution WHERE settled = 1"
        return [uid for (uid,) in self._ledger._db.execute(query)]

    async def _accept(self, rng: random.Random) -> None:
        wire = order(f"d{rng.getrandbits(40)}")
        accepted = Execution(
            order=read_order(wire), phase=Phase.ACKED, stage=Stage.WAITING, reason="Accepted"
        )
        uid = accepted.order.uid
        await self._journal.commit({**self._journal, uid: accepted}, orders={uid: wire})

    async def _move(self, rng: random.Random) -> None:
        moved = {
            uid: execution.step(
                rng.choice((Phase.ACTIVE, Phase.COMPLETE)), "Because", "", self._clock.now_us()
            )
            for uid, execution in self._journal.items()
            if rng.random() < 0.5
        }
        await self._journal.commit({**self._journal, **moved})

    async def _keep(self, rng: random.Random) -> None:
        await self._journal.save_progress()

    async def _settle(self, rng: random.Random) -> None:
        for report in self._journal.reports()[:1]:
            self._journal.mark_absent({report.dispatch_uid})
            self._journal.acknowledge(report.sequence)
        if rng.random() < 0.5:  # else it goes with another commit
            await self._journal.forget()

    async def _connect(self, rng: random.Random) -> None:
        self._ledger.next_epoch(self._clock.now_us() // 1000)

    async def _configure(self, rng: random.Random) -> None:
        counter = self._ledger.revision.counter + 1
        await self._journal.commit(
            {},
            asset=asset(limit_max_injection_watts=rng.randrange(8000)),
            revision=agent_pb2.Revision(era=counter, operator_start_ms=1, counter=counter),
        )


class GatewayDesired:
    """What the gateway serves while the operator is away."""

    def __init__(self, folder: Path) -> None:
        self._store = DesiredStore(folder / "gateway" / "desired.db", _BEGAN_US)
        self._store._connection.execute(_CHECKPOINT_OFTEN)

    def state(self) -> State:
        since, loaded = self._store.state_since_us, self._store.load()
        if loaded is None:
            return {"since": since}
        snapshot, written = loaded
        return {
            "since": since,
            "revision": str(snapshot.revision),
            "assets": {
                each.id.uid: zlib.crc32(each.SerializeToString()) for each in snapshot.assets
            },
            "dispatches": {
                each.uid: zlib.crc32(each.SerializeToString()) for each in snapshot.dispatches
            },
            "written": {uid: [each.written_us, each.ledger_id] for uid, each in written.items()},
        }

    def step(self, rng: random.Random) -> None:
        loaded = self._store.load()
        if loaded is None or rng.random() < 0.1:
            revision = Revision(
                era=rng.getrandbits(30), operator_start_ms=rng.getrandbits(30), version=1
            )
            wanted = tuple(_desired(rng) for _ in range(rng.randrange(20)))
            orders = tuple({each.uid: each for each in wanted}.values())
            snapshot = Snapshot(revision=revision, assets=(asset(),), dispatches=orders)
            asyncio.run(self._store.replace(snapshot))
        elif rng.random() < 0.5:
            version = loaded[0].revision.version
            asyncio.run(self._store.apply([_delta(rng, version + n) for n in range(1, 4)]))
        else:
            uids = [each.uid for each in loaded[0].dispatches] or ["none"]
            write = Written(written_us=rng.getrandbits(30), ledger_id="ledger")
            asyncio.run(self._store.record([(uid, write) for uid in rng.choices(uids, k=3)]))

    def hurt(self, rng: random.Random, losing: Losing) -> None:
        """Desired state never begins anew."""

    def close(self) -> None:
        self._store.close()

    @staticmethod
    def problems(found: State, told: Sequence[Told], after: State | None) -> list[str]:
        return _judge(found, told, after, is_new=found == {"since": _BEGAN_US})


class GatewayLog:
    """The SQLite event log: its appender, and a reader that trims without a sync."""

    def __init__(self, folder: Path) -> None:
        path = folder / "events.db"
        self._log = SqliteEventLog(path, max_bytes=1_500_000, drop_oldest=True)
        for connection in (self._log._appending, self._log._connection):
            connection.execute(_CHECKPOINT_OFTEN)

    def state(self) -> State:
        first, last = self._log.bounds()
        records: dict[str, int] = {}  # JSON has no numbers as keys
        at = first - 1
        while read := self._log.read(at):
            at = read[-1].offset
            records |= {str(each.offset): _digest(each.record) for each in read}
        return {"id": self._log.log_id, "first": first, "last": last, "records": records}

    def step(self, rng: random.Random) -> None:
        if rng.random() < 0.3:
            first, last = self._log.bounds()
            self._log.trim(rng.randint(first, max(first, last)))
        else:
            calls = [_entries(rng) for _ in range(rng.randint(1, 4))]
            asyncio.run(self._append(calls))

    async def _append(self, calls: list[list[log_pb2.LogEntry]]) -> None:
        await asyncio.gather(*map(self._log.append, calls))

    def hurt(self, rng: random.Random, losing: Losing) -> None:
        """A log never begins anew."""

    def close(self) -> None:
        self._log.close()

    @staticmethod
    def problems(found: State, told: Sequence[Told], after: State | None) -> list[str]:
        """Judge a log: a trim may be undone, and several calls are several transactions."""
        if not told:
            return [f"invented: {found}"] if found["last"] else []
        before = told[-1].state
        possible = [before, after or before]
        known = {key: crc for each in told for key, crc in each.state["records"].items()}
        known |= possible[1]["records"]
        offsets = [str(offset) for offset in range(found["first"], found["last"] + 1)]
        wrong = {
            "another id": found["id"] != before["id"],
            "lost": found["last"] < before["last"],
            "invented": found["last"] > max(each["last"] for each in possible),
            "trimmed": found["first"] > max(each["first"] for each in possible),
            "holes": list(found["records"]) != offsets,
            "altered": any(known.get(key) != crc for key, crc in found["records"].items()),
        }
        return [f"{what}: found {found}; told {possible}" for what, is_so in wrong.items() if is_so]


class OlderGatewayLog(GatewayLog):
    """A log that was made before its file gave space back: opening one writes nothing."""

    def __init__(self, folder: Path) -> None:
        path = folder / "events.db"
        if not path.exists():
            with closing(sqlite3.connect(path)) as made:
                made.execute("PRAGMA auto_vacuum = NONE")
                made.execute("PRAGMA journal_mode = WAL")
        super().__init__(folder)


STORES: dict[str, Callable[[Path], Store]] = {
    "agent's outbox": AgentOutbox,
    "agent's ledger": AgentLedger,
    "gateway's desired state": GatewayDesired,
    "gateway's event log": GatewayLog,
    "gateway's event log, older": OlderGatewayLog,
}


def _judge(found: State, told: Sequence[Told], after: State | None, *, is_new: bool) -> list[str]:
    """Judge a store whose every step is one transaction."""
    may_be_new = is_new and (not told or told[-1].losing)
    if may_be_new or found == after or (told and found == told[-1].state):
        return []
    return [f"found {found}; told {[each.state for each in told[-1:]]}, then {after}"]


def _digest(message: Message) -> int:
    return zlib.crc32(message.SerializeToString(deterministic=True))


def _summary(stored: Any) -> list[object]:
    return [
        stored.execution.order.uid,
        zlib.crc32(repr(stored.execution).encode()),
        _digest(stored.report),
    ]


def _desired(rng: random.Random) -> dispatch_pb2.Dispatch:
    wanted: dispatch_pb2.Dispatch = order(f"d{rng.randrange(30)}", watts=rng.getrandbits(12))
    return wanted


def _delta(rng: random.Random, version: int) -> control_pb2.OperatorMessage:
    if rng.random() < 0.5:
        return control_pb2.OperatorMessage(version=version, dispatch=_desired(rng))
    return control_pb2.OperatorMessage(version=version, dispatch_removed=f"d{rng.randrange(30)}")


def _entries(rng: random.Random) -> list[log_pb2.LogEntry]:
    return [
        log_pb2.LogEntry(kind=log_pb2.TELEMETRY, body=rng.randbytes(rng.choice((20, 300, 60_000))))
        for _ in range(rng.randint(1, 3))
    ]
