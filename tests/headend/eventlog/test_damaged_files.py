"""Any damage to the files of a SQLite log: what a reader returns is what was appended, or it stops.

Records have checksums of their own, so nothing altered comes back. What SQLite keeps around them
has none in ``events.db``: damage there may hide records, and the numbers of the others show it.
"""

import asyncio
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.headend.eventlog.engines import alter
from tests.stack import places

from derops.errors import LogDamagedError
from derops.wire.v1 import log_pb2
from derops_headend.eventlog.ports import LogReader, StoredRecord
from derops_headend.eventlog.sqlite import SqliteEventLog, SqliteLogReader

SIZES = (100, 900, 5000, 30_000)
FLIPS = 500
CUTS = 150
LAST_BYTES = 64 * 1024

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A log as it lies on the disk, and what it holds."""

    database: bytes
    wal: bytes
    held: dict[int, bytes]

    def damaged(self, name: str, damage: Damage, rng: random.Random) -> tuple[bytes, bytes]:
        if name == "database":
            return damage(self.database, rng), self.wal
        return self.database, damage(self.wal, rng)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return a log with more than 128 KiB in each of its files, some of it free."""
    path = tmp_path_factory.mktemp("log") / "events.db"
    log, rng = SqliteEventLog(path), random.Random(1)

    async def append(count: int) -> None:
        for _ in range(count):
            body = rng.randbytes(rng.choice(SIZES))
            await log.append([log_pb2.LogEntry(kind=log_pb2.TELEMETRY, body=body)])

    asyncio.run(append(20))
    log.trim(4)
    alter(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    asyncio.run(append(20))
    wal = path.with_name("events.db-wal")
    held = {record.offset: body_of(record) for record in read_all(log)}
    files = Files(database=path.read_bytes(), wal=wal.read_bytes(), held=held)
    log.close()
    assert min(len(files.database), len(files.wal)) > 2 * LAST_BYTES
    return files


def read_all(log: LogReader) -> Iterator[StoredRecord]:
    after = 0
    while records := log.read(after):
        yield from records
        after = records[-1].offset


def body_of(record: StoredRecord) -> bytes:
    return record.record.entries[0].body


def flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: len(content) - rng.randint(1, LAST_BYTES)]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=places.MEMORY) as folder:
        yield Path(folder) / "events.db"


@pytest.mark.parametrize("name", ["database", "wal"])
@pytest.mark.parametrize(("damage", "times"), [(flip, FLIPS), (cut, CUTS)])
def test_nothing_altered_comes_back_and_holes_show(
    path: Path, files: Files, name: str, damage: Damage, times: int
) -> None:
    rng = random.Random(1)
    stopped = shorter = 0
    for _ in range(times):
        path.with_name("events.db-shm").unlink(missing_ok=True)
        database, wal = files.damaged(name, damage, rng)
        path.write_bytes(database)
        path.with_name("events.db-wal").write_bytes(wal)
        found: dict[int, bytes] = {}
        try:
            with closing(SqliteLogReader(path)) as log:
                found.update((record.offset, body_of(record)) for record in read_all(log))
        except (LogDamagedError, sqlite3.DatabaseError):
            stopped += 1
        else:
            shorter += len(found) < len(files.held)

        assert found.items() <= files.held.items()
        assert list(found) == sorted(found)
    assert stopped + shorter
