"""Requests = records: counted under load, and when the API is killed in the middle of it."""

import threading
from pathlib import Path

import httpx
import psycopg
import pytest
from tests.api.rig import ApiProcess, Tenant
from tests.waiting import until

CALLERS, CALLS = 6, 400


def call_until_it_ends(api: ApiProcess, token: str, answered: list[str], enough: int) -> None:
    """Call again and again, and keep the ids of the answers that came whole."""
    with api.client(token) as client:
        while len(answered) < enough:
            try:
                answered.append(client.get("/v1/me").headers["x-request-id"])
            except httpx.TransportError:
                return


def load(api: ApiProcess, token: str, kill_after: int | None = None) -> list[str]:
    """Return the ids of all that was answered, by several callers at once."""
    answered: list[list[str]] = [[] for _ in range(CALLERS)]
    threads = [
        threading.Thread(target=call_until_it_ends, args=(api, token, ids, CALLS // CALLERS))
        for ids in answered
    ]
    for thread in threads:
        thread.start()
    if kill_after is not None:
        while sum(map(len, answered)) < kill_after:
            threads[0].join(0.005)
        api.process.kill()
    for thread in threads:
        thread.join()
    return [each for ids in answered for each in ids]


def recorded(url: str, ids: list[str]) -> dict[str, int]:
    """Return how many records each request has."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "select request_id, count(*) from audit_event where request_id = any(%s) "
            "group by request_id",
            (ids,),
        ).fetchall()
    return dict(rows)


@pytest.mark.timeout(400)  # the API is started three times
async def test_each_answer_has_one_record_also_when_the_api_is_killed(
    api_config: str, api_database_url: str, tenant_a: Tenant, tmp_path: Path
) -> None:
    token, directory = tenant_a.token("viewer"), tmp_path / "api"
    answered: list[str] = []
    for kill_after in (150, 250):
        with ApiProcess(directory, api_config, api_database_url) as api:
            answered += load(api, token, kill_after)
    with ApiProcess(directory, api_config, api_database_url) as api:
        whole = load(api, token)
        answered += whole
        await until(
            lambda: len(recorded(api_database_url, answered)) == len(answered),
            patience_seconds=60,
        )

    assert len(whole) == CALLS // CALLERS * CALLERS
    assert len(answered) >= len(whole) + 400
    assert set(recorded(api_database_url, answered).values()) == {1}
