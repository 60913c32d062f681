"""The port: what is written down, what is remembered of keys, and what is refused when full."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.api.auditing.conftest import AuditDatabase, OpenTrail
from tests.api.auditing.disks import small_disk
from tests.api.auditing.making import ANNA, NOW, make_call, make_create
from tests.counters import value_of
from tests.waiting import until

from derops.observability import Readiness
from derops_headend.api.audit import metrics
from derops_headend.api.audit.keys import IdempotencyKey
from derops_headend.api.audit.record import MAX_RECORD_BYTES
from derops_headend.api.audit.trail import AuditTrail
from derops_headend.api.problems import ProblemError, Slug


@pytest.fixture
async def trail(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> AsyncIterator[AuditTrail]:
    trail = open_trail(postgres_database.connect)
    await trail.start()
    await until(lambda: trail.sink.connected)
    yield trail
    await trail.close()


def away() -> psycopg.Connection:
    raise psycopg.OperationalError("nobody answers")


def end_connections(database: AuditDatabase) -> None:
    """End all connections of the API, as a restart of the server does; return once they are."""
    with database.connect() as connection:
        ended = connection.execute(
            "select pg_terminate_backend(pid, 30000) from pg_stat_activity"
            " where datname = current_database() and usename = current_user"
            " and pid <> pg_backend_pid()"
        ).fetchall()
    assert ended
    assert all(each for (each,) in ended)


def records(trail: AuditTrail) -> list[dict[str, Any]]:
    return [json.loads(each.body) for each in trail.file.scan()]


async def test_a_read_is_written_down(trail: AuditTrail) -> None:
    call = make_call()

    await trail.complete(call, 200, "OK", 1234)

    record = records(trail)[-1]
    assert record == record | {
        "stage": "ResponseComplete",
        "at": "2026-11-30T12:00:00.000000Z",
        "requestId": call.request_id,
        "principal": {
            "kind": "Kubernetes",
            "name": ANNA,
            "uid": "",
            "groups": ["traders"],
            "tokenId": "token-1",
        },
        "namespace": "pilot-north",
        "verb": "get",
        "resource": "derassets",
        "name": "b1",
        "method": "GET",
        "path": "/v1/namespaces/pilot-north/assets/b1",
        "decision": "allow",
        "rule": "RBAC: by a binding",
        "status": 200,
        "reason": "OK",
        "bytes": 1234,
        "source": "192.0.2.7",
        "userAgent": "curl/8",
    }


async def test_a_change_is_written_down_twice(trail: AuditTrail) -> None:
    call = make_create("k" * 64)

    await trail.announce(call)
    (announced,) = (each for each in records(trail) if "requestId" in each)
    assert call.is_announced
    call.subject.object_uid = "uid-1"
    await trail.complete(call, 201, "Created", 10)

    completed = records(trail)[-1]
    assert announced["stage"] == "RequestReceived"
    assert announced["change"] == call.subject.change
    assert "status" not in announced
    assert completed["objectUid"] == "uid-1"
    assert completed["requestId"] == announced["requestId"] == call.request_id


async def test_what_is_written_at_once_is_written_in_one_chain(trail: AuditTrail) -> None:
    await asyncio.gather(*(trail.complete(make_call(), 200, "OK", 1) for _ in range(500)))

    found = list(trail.file.scan())
    assert [each.seq for each in found] == list(range(1, len(found) + 1))
    assert len(found) >= 500


async def test_no_query_and_no_endless_text_is_kept(trail: AuditTrail) -> None:
    endless = "\U0001f600\0" * 100_000
    call = make_call(
        endless,
        path="/v1/assets?token=secret",
        groups=[endless] * 1000,
        user_agent=endless,
        rule=endless,
        name=endless,
        change={"a": endless},
    )

    await trail.complete(call, 200, endless, 1)

    record = records(trail)[-1]
    assert record["path"] == "/v1/assets"
    assert record["change"] == {"omittedBytes": 1_800_008}
    assert len(list(trail.file.scan())[-1].body) < MAX_RECORD_BYTES


async def test_the_last_tenth_is_kept_for_changes(open_trail: OpenTrail) -> None:
    trail = open_trail(away, max_bytes=1024**2)
    await trail.start()
    filling = make_call(rule="x" * 500)

    async def read_until_full() -> None:
        while True:
            await asyncio.gather(*(trail.complete(filling, 200, "OK", 1) for _ in range(50)))

    with pytest.raises(ProblemError) as refused:
        await read_until_full()
    assert refused.value.slug is Slug.AUDIT_UNAVAILABLE
    assert refused.value.retry_after_seconds

    async def be_refused_until_full() -> None:
        while True:  # a change that nobody announced is not for that room
            await trail.complete(make_create(), 422, "Invalid", 1)

    with pytest.raises(ProblemError):
        await be_refused_until_full()
    assert trail.file.size <= 0.9 * 1024**2

    changes = []

    async def change_until_full() -> None:
        while True:
            call = make_create()
            await trail.announce(call)
            changes.append(call)

    with pytest.raises(ProblemError) as full:
        await change_until_full()
    assert full.value.slug is Slug.AUDIT_UNAVAILABLE
    assert changes
    for call in changes:  # what was announced can be completed
        await trail.complete(call, 201, "Created", 1)
    assert trail.file.size <= 1024**2
    await trail.close()


async def test_a_key_is_known_once_it_is_announced(trail: AuditTrail) -> None:
    key, call = "k" * 64, make_create("k" * 64)
    assert await trail.find_key(ANNA, "pilot-north", key) is None

    await trail.announce(call)

    used = await trail.find_key(ANNA, "pilot-north", key)
    assert used is not None
    assert used == (call.request_id, NOW, "d-1", "", "b" * 64, call.subject.change)

    call.subject.object_uid = "uid-1"
    await trail.complete(call, 201, "Created", 1)
    used = await trail.find_key(ANNA, "pilot-north", key)
    assert used is not None
    assert used.object_uid == "uid-1"

    for stranger in (
        ("oidc:eve", "pilot-north", key),
        (ANNA, "south", key),
        (ANNA, "pilot-north", "l" * 64),
    ):
        assert await trail.find_key(*stranger) is None


async def test_a_key_whose_change_was_refused_is_unused(trail: AuditTrail) -> None:
    call = make_create("k" * 64)
    await trail.announce(call)
    await trail.complete(call, 422, "Invalid", 1)

    assert await trail.find_key(ANNA, "pilot-north", "k" * 64) is None


async def test_keys_are_known_to_the_next_process_and_to_other_replicas(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> None:
    trail = open_trail(postgres_database.connect)
    await trail.start()
    await until(lambda: trail.sink.connected)
    done, lost, refused = (make_create(letter * 64) for letter in "dlr")
    for call in (done, lost, refused):
        await trail.announce(call)
    done.subject.object_uid = "uid-1"
    await trail.complete(done, 201, "Created", 1)
    await trail.complete(refused, 422, "Invalid", 1)
    await trail.close()

    for replica in ("api-0", "api-1"):
        again = open_trail(postgres_database.connect, replica)
        await again.start()
        await until(partial(getattr, again.sink, "connected"))
        found = [await again.find_key(ANNA, "pilot-north", letter * 64) for letter in "dlr"]
        await again.close()

        assert [used and (used.name, used.object_uid, used.change) for used in found] == [
            ("d-1", "uid-1", done.subject.change),
            ("d-1", "", lost.subject.change),
            None,
        ]


async def test_a_key_is_in_the_database_before_its_change_is_made(
    trail: AuditTrail, postgres_database: AuditDatabase
) -> None:
    call = make_create("k" * 64)

    await trail.announce(call)

    (row,) = postgres_database.rows("select * from audit_event where verb = 'create'")
    assert (row["stage"], row["request_id"]) == ("RequestReceived", call.request_id)
    assert (row["caller"], row["idempotency_key_sha256"]) == (ANNA, "k" * 64)


async def test_a_key_is_forgotten_after_30_days(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> None:
    now = [NOW]
    trail = open_trail(postgres_database.connect, now=lambda: now[0])
    await trail.start()
    await until(lambda: trail.sink.connected)
    call = make_create("k" * 64)
    await trail.announce(call)
    await trail.complete(call, 201, "Created", 1)
    await until(lambda: not trail.sink.behind)
    await until(lambda: not trail.announced.find(IdempotencyKey(ANNA, "pilot-north", "k" * 64)))

    now[0] += timedelta(days=29, hours=23)
    assert await trail.find_key(ANNA, "pilot-north", "k" * 64)
    now[0] += timedelta(hours=2)
    assert await trail.find_key(ANNA, "pilot-north", "k" * 64) is None
    await trail.close()


async def test_without_the_database_no_key_is_known_and_changes_without_one_go_on(
    open_trail: OpenTrail,
) -> None:
    trail = open_trail(away)
    await trail.start()

    for asked in (
        trail.find_key(ANNA, "pilot-north", "k" * 64),
        trail.announce(make_create("k" * 64)),
    ):
        with pytest.raises(ProblemError) as refused:
            await asked
        assert refused.value.slug is Slug.DATABASE_UNAVAILABLE
        assert refused.value.retry_after_seconds
    cancel = make_create()
    await trail.announce(cancel)
    await trail.complete(cancel, 200, "OK", 1)
    assert [each["stage"] for each in records(trail)][-2:] == [
        "RequestReceived",
        "ResponseComplete",
    ]
    await trail.close()


async def test_a_key_is_found_at_once_after_the_server_ended_the_connection(
    trail: AuditTrail, postgres_database: AuditDatabase
) -> None:
    """As a restart does: whoever asks first is not told that the database is away."""
    assert await trail.find_key(ANNA, "pilot-north", "k" * 64) is None
    failures = value_of(metrics.DATABASE_FAILURES)
    end_connections(postgres_database)
    trail.sink.wake()
    await until(lambda: value_of(metrics.DATABASE_FAILURES) > failures and trail.sink.connected)

    assert await trail.find_key(ANNA, "pilot-north", "k" * 64) is None


async def test_the_delay_is_that_of_what_waits_and_not_of_what_was_written_before(
    open_trail: OpenTrail, postgres_database: AuditDatabase
) -> None:
    now, is_away = NOW, False

    def connect() -> psycopg.Connection:
        return away() if is_away else postgres_database.connect()

    trail = open_trail(connect, now=lambda: now)

    def measured() -> float:
        trail.measure()
        return value_of(metrics.DELAY_SECONDS)

    await trail.start()
    await until(lambda: not trail.sink.behind)
    assert measured() == 0
    now += timedelta(hours=1)  # nobody called
    assert measured() == 0

    is_away = True
    end_connections(postgres_database)
    await trail.complete(make_call(), 200, "", 1)
    assert measured() == 0
    now += timedelta(seconds=90)
    assert measured() == 90

    is_away = False
    await until(lambda: not trail.sink.behind)
    assert measured() == 0
    await trail.close()


async def test_a_change_whose_record_does_not_arrive_in_time_is_withdrawn(
    open_trail: OpenTrail, postgres_database: AuditDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("derops_headend.api.audit.trail.KEY_SECONDS", 0.2)
    trail = open_trail(postgres_database.connect)
    await trail.start()
    await until(lambda: trail.sink.connected)
    call = make_create("k" * 64)
    with psycopg.connect(postgres_database.writer) as person:
        person.execute("lock table audit_event in exclusive mode")
        with pytest.raises(ProblemError) as refused:
            await trail.announce(call)
        assert refused.value.slug is Slug.DATABASE_UNAVAILABLE

    await trail.complete(call, 503, "DatabaseUnavailable", 1)
    assert await trail.find_key(ANNA, "pilot-north", "k" * 64) is None
    await until(lambda: not trail.sink.behind)
    await until(lambda: not trail.announced.find(IdempotencyKey(ANNA, "pilot-north", "k" * 64)))
    assert await trail.find_key(ANNA, "pilot-north", "k" * 64) is None
    await trail.close()


async def test_strangers_are_summed_up(trail: AuditTrail, postgres_database: AuditDatabase) -> None:
    for source, count in (("198.51.100.1", 1000), ("198.51.100.2", 3)):
        for _ in range(count):
            await trail.refused(source, "NoCredential", "GET", "/v1/me?token=secret")
    await trail.sum_up()

    of_source: dict[str, list[dict[str, Any]]] = {}
    for each in records(trail):
        of_source.setdefault(each.get("source", ""), []).append(each)
    assert len(of_source["198.51.100.2"]) == 3
    assert of_source["198.51.100.2"][0]["path"] == "/v1/me"
    assert "principal" not in of_source["198.51.100.2"][0]
    *single, total = of_source["198.51.100.1"]
    assert len(single) == 20
    assert total["count"] == 980
    assert total["firstAt"] == total["lastAt"] == "2026-11-30T12:00:00.000000Z"


async def test_strangers_cannot_fill_the_file(open_trail: OpenTrail) -> None:
    seconds = itertools.count()
    trail = open_trail(away, max_bytes=1024**2, now=lambda: NOW + timedelta(seconds=next(seconds)))
    await trail.start()

    for number in range(6000):  # from as many networks
        await trail.refused(f"2001:db8:{number:x}::1", "NoCredential", "GET", "/v1/me" * 50)
    await trail.sum_up()

    assert trail.file.size < 0.55 * 1024**2
    assert records(trail)[-1]["source"] == "others"
    counted = sum(each.get("count", "source" in each) for each in records(trail))
    assert counted == 6000
    await trail.complete(make_call(), 200, "OK", 1)
    await trail.close()


async def test_a_full_disk_refuses_and_is_got_over(tmp_path: Path, open_trail: OpenTrail) -> None:
    with small_disk(tmp_path / "api-0", megabytes=1) as disk:
        readiness = Readiness()
        trail = open_trail(away, max_bytes=1024**3, readiness=readiness)
        await trail.start()
        taken = 0

        async def read_until_full() -> None:
            nonlocal taken
            while True:
                await trail.complete(make_call(rule="x" * 500), 200, "OK", 1)
                taken += 1

        (disk / "filler").write_bytes(bytes(800 * 1024))
        with pytest.raises(ProblemError) as refused:
            await read_until_full()
        assert refused.value.slug is Slug.AUDIT_UNAVAILABLE
        assert "degraded audit's file: cannot be written: No space left" in readiness.report()[1]
        with pytest.raises(ProblemError):
            await trail.announce(make_create(rule="x" * 500))

        (disk / "filler").unlink()
        await trail.complete(make_call(), 200, "OK", 1)

        assert "audit's file" not in readiness.report()[1]
        found = list(trail.file.scan())
        assert len([each for each in found if "ResponseComplete" in each.body]) == taken + 1
        assert [each.seq for each in found] == list(range(1, len(found) + 1))
        await trail.close()


async def test_a_read_only_disk_is_said(tmp_path: Path, open_trail: OpenTrail) -> None:
    with small_disk(tmp_path / "api-0", megabytes=1) as disk:
        trail = open_trail(away)
        await trail.start()
        await trail.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

        with pytest.raises(OSError, match="Read-only file system"):
            open_trail(away)


async def test_heads_are_printed(trail: AuditTrail, capsys: pytest.CaptureFixture[str]) -> None:
    await trail.complete(make_call(), 200, "OK", 1)
    await until(lambda: not trail.sink.behind)

    trail.say_head()

    said = json.loads(capsys.readouterr().out)
    assert said == {"event": "audit.head", **trail.file.head._asdict()}


async def test_what_was_cut_off_in_the_middle_is_a_record_and_leaves_its_key_used(
    trail: AuditTrail,
) -> None:
    call = make_create("k" * 64)
    await trail.announce(call)

    await trail.complete(call, 0, "aborted", 0)

    record = records(trail)[-1]
    assert (record["status"], record["bytes"], record["latencyMs"]) == (0, 0, 0.0)
    used = await trail.find_key(ANNA, "pilot-north", "k" * 64)
    assert used is not None
    assert used.object_uid == ""


async def test_a_server_that_hangs_is_not_waited_for(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await trail.find_key(ANNA, "pilot-north", "k" * 64) is None
    connection = trail._asking._connection
    assert connection is not None
    stopped = connection.info.backend_pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        with monkeypatch.context() as impatient:
            impatient.setattr("derops_headend.api.audit.lookup._ASK_SECONDS", 0.3)
            with pytest.raises(ProblemError) as refused:
                await trail.find_key(ANNA, "pilot-north", "k" * 64)
        assert refused.value.slug is Slug.DATABASE_UNAVAILABLE
        assert await trail.find_key(ANNA, "pilot-north", "k" * 64) is None
    finally:
        os.kill(stopped, signal.SIGCONT)
