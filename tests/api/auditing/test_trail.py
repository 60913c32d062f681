"""The port: what is written down, what is remembered of keys, and what is refused when full."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.api.auditing.making import ANNA, NOW, make_call, make_create

from derops_headend.api.auditing.record import MAX_RECORD_BYTES
from derops_headend.api.auditing.trail import AuditTrail
from derops_headend.api.problems import ProblemError, Slug


def away() -> psycopg.Connection:
    raise psycopg.OperationalError("nobody answers")


def open_trail(directory: Path, max_bytes: int = 1024**2) -> AuditTrail:
    return AuditTrail.open(
        directory, replica="api-0", max_bytes=max_bytes, connect=away, now=lambda: NOW
    )


@pytest.fixture
async def trail(tmp_path: Path) -> AsyncIterator[AuditTrail]:
    trail = open_trail(tmp_path)
    await trail.start()
    yield trail
    await trail.close()


def records(trail: AuditTrail) -> list[dict[str, Any]]:
    return [json.loads(each.body) for each in trail._file.scan()]


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

    found = list(trail._file.scan())
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
    assert len(list(trail._file.scan())[-1].body) < MAX_RECORD_BYTES


async def test_the_last_tenth_is_kept_for_changes(tmp_path: Path) -> None:
    trail = open_trail(tmp_path / "small")
    await trail.start()
    filling = make_call(rule="x" * 500)

    async def read_until_full() -> None:
        while True:
            await asyncio.gather(*(trail.complete(filling, 200, "OK", 1) for _ in range(50)))

    with pytest.raises(ProblemError) as refused:
        await read_until_full()
    assert refused.value.slug is Slug.AUDIT_UNAVAILABLE
    assert refused.value.retry_after_seconds
    with pytest.raises(ProblemError):  # a change that nobody announced is not for that room
        await trail.complete(make_create(), 422, "Invalid", 1)

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
    assert trail._file.size <= 1024**2
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


async def test_keys_are_known_to_the_next_process(tmp_path: Path) -> None:
    trail = open_trail(tmp_path)
    await trail.start()
    done, lost = make_create("d" * 64), make_create("l" * 64)
    for call in (done, lost):
        await trail.announce(call)
    done.subject.object_uid = "uid-1"
    await trail.complete(done, 201, "Created", 1)
    await trail.close()

    again = open_trail(tmp_path)
    await again.start()
    found = [await again.find_key(ANNA, "pilot-north", letter * 64) for letter in "dl"]
    await again.close()

    assert [used and used.object_uid for used in found] == ["uid-1", ""]
