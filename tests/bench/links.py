"""P22: how long the status of a dispatch takes while the links of ten thousand assets change."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import grpc
import kubernetes
from tests.bench.operator_scale import create_objects, settle
from tests.bench.results import Result
from tests.crds.manifests import dispatch_manifest
from tests.e2e.acting import Pilot, battery_manifest
from tests.stack.stack import Stack

from derops.data_path import CONDITION
from derops.wire.v1 import agent_pb2, control_pb2, control_pb2_grpc, dispatch_pb2
from derops_operator.cluster.status_writer import ASSETS_PER_SECOND, WRITES_PER_SECOND

_ASSETS, _DISPATCHES = 10_000, 100
_PERIOD_SECONDS = 30.0
"""Each link goes once in this time, and comes back after half of it: too fast to be told."""

_TURNS_PER_SECOND = 10
_OPTIONS = (
    # The operator pings; a server that does not know that ends the stream.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class PlayedGateway(control_pb2_grpc.ControlServicer):
    """A replica whose agents accept each order at once, and whose streams end as it is told."""

    def __init__(self, address: str, key: bytes, certificate: bytes) -> None:
        self._address, self._pair = address, (key, certificate)
        self._orders: set[str] = set()
        self._assets: list[str] = []
        self._names: dict[str, dispatch_pb2.AssetId] = {}
        self._context: Any = None
        self._unanswered: list[dispatch_pb2.Dispatch] = []
        """Of a snapshot that is not over."""

        self._connected = False
        self._speaking = asyncio.Lock()  # gRPC takes one write at a time
        self._flapping: asyncio.Task[None] | None = None
        self.changes = 0
        """How often a link changed."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway")
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def Sync(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        hello = control_pb2.ReplicaHello(replica="played", state_since_us=1, takes_batches=True)
        await context.write(control_pb2.ReplicaMessage(hello=hello))
        async for message in requests:
            for part in message.batch.messages or (message,):
                await self._hear(part, context)

    def connect(self) -> int:
        """Have all agents connect, and their data flow; return how many there are."""
        self._connected = True
        self._call(self._tell_all())
        return len(self._assets)

    def begin_flapping(self) -> None:
        """End all streams at once; from then on each comes back, and ends again."""
        self._flapping = self._call(self._begin())

    def end_flapping(self) -> None:
        """Have all agents connect for good."""
        self._call(self._end())
        self.connect()

    async def _begin(self) -> asyncio.Task[None]:
        self._connected = False
        await self._tell_all()
        self.changes = len(self._assets)
        return asyncio.create_task(self._flap())

    async def _end(self) -> None:
        if self._flapping is not None:
            self._flapping.cancel()
            await asyncio.gather(self._flapping, return_exceptions=True)

    async def _flap(self) -> None:
        """Change a few links in each turn, all of them in half a period."""
        each = max(1, round(len(self._assets) * 2 / _PERIOD_SECONDS / _TURNS_PER_SECOND))
        connected, at = True, 0
        while True:
            some = self._assets[at : at + each]
            await self._say([word for uid in some for word in _words(uid, connected=connected)])
            self.changes += len(some)
            at += each
            if at >= len(self._assets):
                connected, at = not connected, 0
            await asyncio.sleep(1 / _TURNS_PER_SECOND)

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    async def _start(self) -> None:
        credentials = grpc.ssl_server_credentials([self._pair])
        self._server = grpc.aio.server(options=_OPTIONS)
        add: Any = control_pb2_grpc.add_ControlServicer_to_server
        add(self, self._server)
        self._server.add_secure_port(self._address, credentials)
        await self._server.start()

    async def _hear(self, message: control_pb2.OperatorMessage, context: Any) -> None:
        kind = message.WhichOneof("kind")
        if kind == "asset" and message.asset.id.uid not in self._names:
            self._names[message.asset.id.uid] = message.asset.id
            self._assets.append(message.asset.id.uid)
        elif kind == "dispatch" and message.dispatch.uid not in self._orders:
            self._unanswered.append(message.dispatch)
        elif kind == "snapshot_end":
            self._context = context
        if self._context is not context or not message.version:
            return
        await self._say([control_pb2.ReplicaMessage(accepted_version=message.version)])
        while self._unanswered:
            order = self._unanswered.pop()
            self._orders.add(order.uid)
            await self._say(self._acceptance(order))
        if kind == "snapshot_end":
            await self._tell_all()

    async def _tell_all(self) -> None:
        """Say of each asset whether its agent is connected."""
        told = self._connected
        await self._say([word for uid in self._assets for word in _words(uid, connected=told)])

    def _acceptance(self, order: dispatch_pb2.Dispatch) -> list[control_pb2.ReplicaMessage]:
        now_us, asset = time.time_ns() // 1000, self._names[order.asset_uid]
        report = dispatch_pb2.DispatchReport(
            sequence=1,
            ledger_id="played",
            dispatch_uid=order.uid,
            observed_generation=order.generation,
            phase="Acked",
            reason="Accepted",
            accepted_us=now_us,
        )
        told = control_pb2.AgentReport(
            asset_uid=asset.uid,
            received_us=now_us,
            report=report,
            namespace=asset.namespace,
            asset_name=asset.name,
        )
        delivery = control_pb2.Delivery(
            dispatch_uid=order.uid,
            generation=order.generation,
            written_us=now_us,
            ledger_id="played",
        )
        return [
            control_pb2.ReplicaMessage(delivery=delivery),
            control_pb2.ReplicaMessage(report=told),
        ]

    async def _say(self, words: list[control_pb2.ReplicaMessage]) -> None:
        for first in range(0, len(words), 50):
            batch = control_pb2.ReplicaBatch(messages=words[first : first + 50])
            async with self._speaking:
                await self._context.write(control_pb2.ReplicaMessage(batch=batch))


def _words(uid: str, *, connected: bool) -> list[control_pb2.ReplicaMessage]:
    """Return what a replica says of a stream that begins, with data that flows, or that ends."""
    now_us = time.time_ns() // 1000
    session = control_pb2.Session(
        asset_uid=uid,
        connected=connected,
        epoch=1,
        since_us=now_us,
        end_reason="" if connected else "ConnectionLost",
    )
    words = [control_pb2.ReplicaMessage(session=session)]
    if connected:
        state = control_pb2.DeviceState(
            asset_uid=uid,
            facts=agent_pb2.DeviceFacts(),
            received_us=now_us,
            path=control_pb2.LinkState(),
        )
        words.append(control_pb2.ReplicaMessage(device=state))
    return words


def measure(assets: int = _ASSETS, dispatches: int = _DISPATCHES) -> Iterator[Result]:
    """From the API server taking a Dispatch to its status saying that the agent has accepted it.

    First on an idle fleet, then while all links go at once and each once in half a minute from then
    on. Nothing but the operator works, on a played gateway: certificates are not issued.
    """
    with Stack() as stack:
        stack.control_plane.processes["cert-manager"].terminate()
        stack.fleet.stop()
        for part in ("gateway", "writer", "api"):
            stack.parts[part].terminate()
        address = stack.parts["gateway"].environment["DEROPS_GATEWAY_CONTROL_LISTEN"]
        directory = stack.identities.control_port
        pair = (directory / "tls.key").read_bytes(), (directory / "tls.crt").read_bytes()
        pilot = Pilot(stack, "bench-links")
        pilot.create_namespace()
        with PlayedGateway(address, *pair) as gateway:
            names = [f"battery-{number}" for number in range(assets)]
            create_objects(
                stack, pilot, "derassets", [battery_manifest(n, with_agent=False) for n in names]
            )
            settle(lambda: _true(stack, pilot, "Ready"), more_than=assets)
            assert gateway.connect() == assets
            settle(lambda: _true(stack, pilot, CONDITION), more_than=assets)
            idle = _rounds(stack, pilot, "idle", dispatches)
            before, begun = _told(stack, pilot), time.monotonic()
            gateway.begin_flapping()
            beside = _rounds(stack, pilot, "beside", dispatches)
            after, lasted = _told(stack, pilot), time.monotonic() - begun
            changes = gateway.changes
            gateway.end_flapping()
    written = sum(after[name][1] != before[name][1] for name in before)
    for name, share in (("P22_status_p99_beside_links", 0.99), ("status_p50_beside_links", 0.5)):
        value, limit = _quantile(beside, share), _quantile(idle, share)
        yield Result(name=name, value=value, unit="ms", limit=limit, goal="<= 2")
    yield Result(
        name="links_changed",
        value=changes / lasted,
        unit="changes/s",
        limit=WRITES_PER_SECOND,
        goal=">= 1",
    )
    yield Result(
        name="links_data_flowing_changes",
        value=sum(after[name][0][CONDITION] != before[name][0][CONDITION] for name in before),
        unit="changes",
        limit=0.0,
    )
    yield Result(
        name="links_assets_written",
        value=written,
        unit="assets",
        limit=min(assets, lasted * ASSETS_PER_SECOND),
        goal=">= 1",
    )


def _rounds(stack: Stack, pilot: Pilot, word: str, number: int) -> list[float]:
    """Return the seconds that each of some dispatches took, one after the other."""
    api = kubernetes.client.CustomObjectsApi(
        kubernetes.config.new_client_from_config(str(stack.kubeconfig))
    )
    return [_round(api, pilot, f"{word}-{each}") for each in range(number)]


def _round(api: kubernetes.client.CustomObjectsApi, pilot: Pilot, name: str) -> float:
    body = dispatch_manifest(
        name, "battery-0", setpoint={"mode": "ActivePower", "activePowerWatts": 1000}
    )
    body["spec"] |= {"startTime": "2030-01-01T00:00:00Z", "durationSeconds": 60}
    kind = ("derops.io", "v1alpha1", pilot.namespace, "dispatches")
    begun = time.perf_counter()
    created = api.create_namespaced_custom_object(*kind, body)
    watch = kubernetes.watch.Watch()
    for event in watch.stream(
        api.list_namespaced_custom_object,
        *kind,
        field_selector=f"metadata.name={name}",
        resource_version=created["metadata"]["resourceVersion"],
        timeout_seconds=120,
    ):
        phase = event["object"].get("status", {}).get("phase")
        if phase == "Acked":
            return time.perf_counter() - begun
        assert phase in {None, "Submitted", "Sent"}, event["object"]["status"]
    raise AssertionError(f"{name} was not accepted within 120 s")


def _told(stack: Stack, pilot: Pilot) -> dict[str, tuple[dict[str, Any], str]]:
    """Return the conditions of each asset by type, and its version."""
    api = kubernetes.client.CustomObjectsApi(
        kubernetes.config.new_client_from_config(str(stack.kubeconfig))
    )
    kind = ("derops.io", "v1alpha1", pilot.namespace, "derassets")
    found: dict[str, tuple[dict[str, Any], str]] = {}
    page: dict[str, Any] = {}
    more = ""
    while not page or more:
        page = api.list_namespaced_custom_object(*kind, limit=500, _continue=more)
        more = page["metadata"].get("continue", "")
        for item in page["items"]:
            told = {each["type"]: each for each in item.get("status", {}).get("conditions", [])}
            version = item["metadata"]["resourceVersion"]
            found[item["metadata"]["name"]] = told, version
    return found


def _true(stack: Stack, pilot: Pilot, condition: str) -> int:
    """Return how many assets have a condition that is True."""
    seen = _told(stack, pilot).values()
    return sum(told.get(condition, {}).get("status") == "True" for told, _ in seen)


def _quantile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[int(len(seconds) * share)] * 1e3
