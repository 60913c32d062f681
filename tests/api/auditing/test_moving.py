"""From the file into the database: everything, in order, once, whatever ends in between."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psycopg
import pytest
from tests.api.auditing.conftest import AuditDatabase, OpenTrail
from tests.api.auditing.making import NOW, make_call, make_create
from tests.counters import value_of
from tests.waiting import until

from derops.observability import Readiness
from derops_headend.api.audit import metrics
from derops_headend.api.audit.file import AuditFile
from derops_headend.api.audit.trail import AuditTrail
from derops_headend.storage.audit import store
from derops_headend.storage.audit_verification import verify
from derops_headend.storage.chain import ChainedRecord

KILLS = int(os.environ.get("DEROPS_KILLS", "4"))


async def moved(trail: AuditTrail) -> None:
    await until(lambda: not trail.sink.behind, patience_seconds=60)


def findings(database: AuditDatabase) -> list[str]:
    with psycopg.connect(database.api, autocommit=True) as connection:
        return [str(each) for each in verify(connection)]


class Gate:
    """A way to the database that can be closed, and then ends what is on it."""

    def __init__(self, database: AuditDatabase) -> None:
        self._database = database
        self.is_open = True
        self.asked = 0

    def connect(self) -> psycopg.Connection:
        self.asked += 1
        if not self.is_open:
            raise psycopg.OperationalError("nobody answers")
        return self._database.connect()

    def close(self) -> None:
        self.is_open = False
        with self._database.server.superuser(self._database.name) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where usename = 'derops_api' and datname = current_database()"
            )


async def test_what_is_written_down_is_in_the_database(
    open_trail: OpenTrail, audit_database: AuditDatabase
) -> None:
    trail = open_trail(audit_database.connect)
    await trail.start()
    create = make_create("k" * 64)
    await until(partial(getattr, trail.sink, "connected"))
    await trail.announce(create)
    create.subject.object_uid = "uid-1"
    await trail.complete(create, 201, "Created", 7)
    await asyncio.gather(*(trail.complete(make_call(), 200, "OK", 1) for _ in range(300)))
    await trail.refused("192.0.2.9", "NoCredential", "GET", "/v1/me")
    await trail.complete(make_call(name="\0\ud800", user_agent="\0"), 200, "OK", 1)
    await moved(trail)
    written = list(trail.file.scan())
    await trail.close()

    rows = audit_database.rows()
    assert [(row["chain"], row["seq"], row["hash"], row["body"]) for row in rows] == [
        (each.chain, each.seq, each.hash, each.body) for each in written
    ]
    assert len(rows) == 305
    (done,) = (row for row in rows if row["object_uid"])
    assert (done["status"], done["name"], done["at"]) == (201, "d-1", NOW)
    assert findings(audit_database) == []


async def test_an_outage_is_got_over_and_room_is_given_back(
    open_trail: OpenTrail, postgres_database: AuditDatabase, tmp_path: Path
) -> None:
    gate, readiness = Gate(postgres_database), Readiness()
    trail = open_trail(gate.connect, readiness=readiness)
    await trail.start()
    await moved(trail)
    gate.close()

    async def read(count: int) -> None:
        for _ in range(count // 50):
            await asyncio.gather(
                *(trail.complete(make_call(rule="x" * 500), 200, "OK", 1) for _ in range(50))
            )

    await read(2500)
    await until(lambda: "takes no records: nobody answers" in readiness.report()[1])
    assert trail.sink.behind
    assert trail.file.size > 2 * 1024**2
    gate.is_open = True
    await moved(trail)
    await read(100)
    await moved(trail)

    assert readiness.report() == (True, "ok")
    assert trail.file.size < 1.1 * 1024**2
    assert [row["seq"] for row in postgres_database.rows()] == list(range(1, 2602))
    assert findings(postgres_database) == []
    await trail.close()


async def test_a_replica_that_is_started_again_stores_nothing_twice(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> None:
    for start in range(1, 4):
        trail = open_trail(postgres_database.connect)
        await trail.start()
        await trail.complete(make_call(), 200, "OK", 1)
        await moved(trail)
        await trail.close()
        assert [row["seq"] for row in postgres_database.rows()] == list(range(1, 2 * start + 1))

    assert findings(postgres_database) == []


async def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    open_trail: OpenTrail, postgres_database: AuditDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []

    def lose_the_answer(connection: psycopg.Connection, records: Sequence[ChainedRecord]) -> int:
        conflicts = store(connection, records)
        if len(lost) < 3:
            lost.append(len(records))
            raise psycopg.OperationalError("the connection ended")
        return conflicts

    monkeypatch.setattr("derops_headend.api.audit.sink.store", lose_the_answer)
    trail = open_trail(postgres_database.connect)
    await trail.start()
    await asyncio.gather(*(trail.complete(make_call(), 200, "OK", 1) for _ in range(100)))
    await moved(trail)
    await trail.close()

    assert len(lost) == 3
    assert [row["seq"] for row in postgres_database.rows()] == list(range(1, 102))
    assert findings(postgres_database) == []


async def test_the_server_of_the_database_is_killed_in_between(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> None:
    trail = open_trail(postgres_database.connect, max_bytes=256 * 1024**2)
    await trail.start()
    stopping = asyncio.Event()

    async def read() -> int:
        count = 0
        while not stopping.is_set():
            await trail.complete(make_call(), 200, "OK", 1)
            count += 1
        return count

    reading = [asyncio.create_task(read()) for _ in range(8)]
    await until(lambda: trail.sink.head is not None and trail.sink.head.seq > 500)
    await asyncio.to_thread(postgres_database.server.crash)
    stopping.set()
    count = sum(await asyncio.gather(*reading))
    await moved(trail)
    await trail.close()

    assert [row["seq"] for row in postgres_database.rows()] == list(range(1, count + 2))
    assert findings(postgres_database) == []


async def test_a_role_that_may_not_is_said_and_waited_for(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> None:
    readiness = Readiness()
    with psycopg.connect(postgres_database.writer, autocommit=True) as person:
        person.execute("revoke insert on audit_event from derops_api")
        trail = open_trail(postgres_database.connect, readiness=readiness)
        await trail.start()
        await trail.complete(make_call(), 200, "OK", 1)
        await until(lambda: '"derops-headend database roles" prints' in readiness.report()[1])
        person.execute("grant insert on audit_event to derops_api")
    await moved(trail)
    await trail.close()

    assert len(postgres_database.rows()) == 2


async def test_a_record_that_the_database_refuses_holds_up_no_other(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> None:
    with psycopg.connect(postgres_database.writer, autocommit=True) as person:
        person.execute("alter table audit_event add check (name <> 'poison')")
    before = value_of(metrics.CONFLICTS)
    trail = open_trail(postgres_database.connect)
    await trail.start()
    names = [f"b{n}" for n in range(20)]
    names[7] = "poison"
    await asyncio.gather(*(trail.complete(make_call(name=name), 200, "OK", 1) for name in names))
    await moved(trail)
    await trail.close()

    assert {row["name"] for row in postgres_database.rows()} - {""} == set(names) - {"poison"}
    assert value_of(metrics.CONFLICTS) - before == 1
    assert "it is not there" in findings(postgres_database)[0]


async def test_somebody_elses_record_in_our_place_is_told(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> None:
    before = value_of(metrics.CONFLICTS)
    trail = open_trail(postgres_database.connect)
    head = trail.file.head
    with psycopg.connect(postgres_database.api, autocommit=True) as thief:
        thief.execute(
            "insert into audit_event select %s, 2, %s, '', '{}', '', '', '', '', '', '', '', '', "
            "null, ''",
            (head.chain, NOW),
        )
    await trail.start()
    await trail.complete(make_call(), 200, "OK", 1)
    await moved(trail)
    await trail.close()

    assert value_of(metrics.CONFLICTS) - before == 1
    assert f"chain {head.chain} seq 2: was edited" in findings(postgres_database)[0]


def run_and_kill(directory: Path, database: AuditDatabase, run: str, lines: int) -> list[str]:
    """Let a process append until it said so much; kill it, and return what it said."""
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.api.auditing.appender", directory, database.api, run],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["headend", "."])},
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        while len(said) < lines:
            line = running.stdout.readline()
            assert line, "the appender ended"
            said.append(line.strip())
        running.send_signal(signal.SIGKILL)
        said += [line.strip() for line in running.stdout if line.endswith("\n")]
        assert running.wait() == -signal.SIGKILL
    return said


async def test_whatever_was_acknowledged_survives_kill_9_and_is_there_once(
    tmp_path: Path, postgres_database: AuditDatabase
) -> None:
    directory, chance = tmp_path / "api-0", random.Random(7)
    said: list[str] = []
    for run in range(KILLS):
        said += run_and_kill(directory, postgres_database, str(run), chance.randint(10, 900))
        in_file = AuditFile(directory, replica="api-0", now=NOW)
        kept = {row["body"] for row in postgres_database.rows()}
        kept |= {each.body for each in in_file.scan()}
        in_file.close()
        requests = Counter(json.loads(body).get("requestId") for body in kept)
        requests.pop(None)
        assert set(said) <= set(requests), "something that was acknowledged is nowhere"
        assert max(requests.values()) == 1

    trail = AuditTrail.open(directory, replica="api-0", connect=postgres_database.connect)
    await trail.start()
    await moved(trail)
    await trail.close()
    rows = postgres_database.rows("select seq, request_id, chain from audit_event order by seq")
    stored = Counter(row["request_id"] for row in rows if row["request_id"])
    assert set(said) <= set(stored)
    assert max(stored.values()) == 1
    assert len({row["chain"] for row in rows}) == 1
    assert findings(postgres_database) == []
