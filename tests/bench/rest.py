"""The API over HTTP, beside bare calls of Kubernetes: reads, orders, load, and its memory."""

import asyncio
import base64
import itertools
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import yaml
from tests.api.rig import ApiProcess, make_tenant
from tests.bench.limits import resident_kibibytes
from tests.bench.results import Result
from tests.crds.manifests import BATTERY, DISPATCH, merged
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import program_kubeconfig
from tests.stack.postgres import PostgresServer

from derops_headend.storage.schema import migrate

_ASSETS = 10_000
_REPEATS = 200
_CALLERS, _AT_ONCE, _LOAD_SECONDS = 4, 8, 10.0
_NAMESPACE = "bench-rest"
_KINDS = f"/apis/derops.io/v1alpha1/namespaces/{_NAMESPACE}"
_ORDER = {
    "asset": "battery-1",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
    "startTime": "2100-01-01T00:00:00Z",
}
_keys = itertools.count(1)


def measure() -> Iterator[Result]:
    """Ten thousand assets in one namespace; rights are cached where the API caches them."""
    with ExitStack() as opened:
        kube = opened.enter_context(ControlPlane())
        postgres = opened.enter_context(PostgresServer())
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        url = postgres.create_database("bench_rest")
        with psycopg.connect(url) as connection:
            migrate(connection)
        config = program_kubeconfig(kube, "api")
        tenants = [make_tenant(kube, _NAMESPACE)]
        tenants += [make_tenant(kube, f"{_NAMESPACE}-{each}") for each in range(1, _CALLERS)]
        tokens = [each.token("dispatcher") for each in tenants]
        account = yaml.safe_load(Path(config).read_text())
        bare = (kube.server, account["users"][0]["user"]["token"])
        asyncio.run(_fill(kube))
        api = opened.enter_context(ApiProcess(directory / "api", config, url))
        resident = resident_kibibytes(api.process.pid) / 1024
        yield Result(name="rest_resident_at_10000_assets", value=resident, unit="MiB", limit=150.0)
        yield from asyncio.run(_calls(api.url, tokens[0], bare))
        yield from asyncio.run(_load(api.url, tokens, url))


async def _fill(kube: ControlPlane) -> None:
    """Create the assets, as the administrator."""
    config = yaml.safe_load(Path(kube.kubeconfig).read_text())
    user = config["users"][0]["user"]
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    with tempfile.NamedTemporaryFile() as pair:
        for part in ("client-certificate-data", "client-key-data"):
            pair.write(base64.b64decode(user[part]))
        pair.flush()
        trust.load_cert_chain(pair.name)
    numbers = iter(range(_ASSETS))
    connector = aiohttp.TCPConnector(ssl=trust)

    async def create() -> None:
        for number in numbers:
            metadata = {"name": f"battery-{number}", "labels": {"site": f"site-{number % 100}"}}
            body = merged(BATTERY, {"metadata": metadata})
            await _expect(session.post(f"{_KINDS}/derassets", json=body), 201)

    async with aiohttp.ClientSession(kube.server, connector=connector) as session:
        await asyncio.gather(*(create() for _ in range(20)))


async def _calls(url: str, token: str, bare: tuple[str, str]) -> list[Result]:
    path = f"/v1/namespaces/{_NAMESPACE}"
    async with _session(url, token) as api, _session(*bare) as kubernetes:

        async def order() -> None:
            headers = {"Idempotency-Key": f"bench-{next(_keys)}"}
            await _expect(api.post(f"{path}/dispatches", json=_ORDER, headers=headers), 201)

        async def create() -> None:
            body = merged(DISPATCH, {"metadata": {"name": f"bare-{next(_keys)}"}})
            await _expect(kubernetes.post(f"{_KINDS}/dispatches", json=body), 201)

        async def get() -> None:
            await _expect(api.get(f"{path}/assets/battery-1"), 200)

        async def list_500() -> None:
            await _expect(api.get(f"{path}/assets", params={"limit": "500"}), 200)

        one, many = await _p50_ms(get), await _p50_ms(list_500, 50)
        # Taking turns: what else the machine does is the same for both.
        turns = [(await _p50_ms(create, 40), await _p50_ms(order, 40)) for _ in range(5)]
    made, ordered = (statistics.median(each) for each in zip(*turns, strict=True))
    return [
        Result(name="rest_get_asset_p50", value=one, unit="ms", limit=5.0),
        Result(name="rest_list_500_assets_p50", value=many, unit="ms", limit=50.0),
        Result(name="rest_order_p50", value=ordered, unit="ms", limit=made, goal="<= 3"),
    ]


async def _load(url: str, tokens: list[str], database_url: str) -> list[Result]:
    """Read as fast as callers are let in, and count what the audit has of it."""
    begun_at = time.time()
    answered = 0

    async def call(session: aiohttp.ClientSession, namespace: str, until: float) -> None:
        nonlocal answered
        while time.monotonic() < until:
            async with session.get(f"/v1/namespaces/{namespace}/assets?limit=1") as answer:
                await answer.read()
                answered += answer.status == 200

    until = time.monotonic() + _LOAD_SECONDS
    async with asyncio.TaskGroup() as tasks:
        sessions = [_session(url, each) for each in tokens]
        for number, session in enumerate(sessions):
            namespace = _NAMESPACE if number == 0 else f"{_NAMESPACE}-{number}"
            for _ in range(_AT_ONCE):
                tasks.create_task(call(session, namespace, until))
    for session in sessions:
        await session.close()
    recorded = 0
    patience = time.monotonic() + 30
    with psycopg.connect(database_url, autocommit=True) as connection:
        while recorded < answered and time.monotonic() < patience:
            row = connection.execute(
                "select count(*) from audit_event where verb = 'list' and status = 200 "
                "and at >= to_timestamp(%s)",
                (begun_at,),
            ).fetchone()
            recorded = row[0] if row else 0
            await asyncio.sleep(0.1)
    rate = answered / _LOAD_SECONDS
    return [
        Result(name="rest_calls_per_second", value=rate, unit="1/s", limit=300.0, goal=">= 1"),
        Result(
            name="rest_calls_recorded", value=recorded, unit="calls", limit=answered, goal="== 1"
        ),
    ]


def _session(url: str, token: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        headers={"Authorization": f"Bearer {token}"},
        connector=aiohttp.TCPConnector(ssl=False, limit=0),
    )


async def _expect(call: Any, status: int) -> None:
    async with call as answer:
        text = await answer.text()
        if answer.status != status:
            raise RuntimeError(f"{answer.status}: {text[:300]}")


async def _p50_ms(call: Callable[[], Awaitable[None]], repeats: int = _REPEATS) -> float:
    took = []
    for _ in range(repeats):
        begun = time.perf_counter()
        await call()
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)
