"""The operator's end of Control.Sync: one stream to each gateway replica, kept up.

Adapter only: what replicas say goes into the fleet, and the keys it concerns into the queue.
"""

import asyncio
import random
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import structlog

from derops.lifecycle import Phase
from derops.observing import Readiness
from derops.wire.v1 import control_pb2, control_pb2_grpc
from derops_operator import metrics
from derops_operator.desired import BACKLOG_BYTES, Desired, Subscription
from derops_operator.fleet import Fleet
from derops_operator.settings import OperatorSettings

RESOLVE_SECONDS = 10.0
"""How often the addresses of the gateways are looked up."""

MAX_BATCH = 50
"""Messages to a replica in one; none comes near 64 KiB, and gRPC takes 4 MiB."""

MAX_SAID_BYTES = 256 * 1024
"""Of one thing that a replica says; the greatest honest one is a report of 64 KiB."""

HELLO_SECONDS = 10.0
"""How long a replica may take to say hello."""

HISTORY_LIMIT = 20_000
"""Transitions that wait for any gateway; then the oldest go."""

_BACKOFF_SECONDS = (0.1, 5.0)
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.enable_retries", 0),
)

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it

_log = structlog.get_logger("headend")


class Headend:
    """All gateway replicas."""

    def __init__(
        self,
        settings: OperatorSettings,
        desired: Desired,
        fleet: Fleet,
        readiness: Readiness,
        concerns: Callable[[str], None],
        accepted: Callable[[], None],
        knows: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """Make the client; ``run`` starts it.

        Args:
            settings: Where the replicas are and how to prove who we are.
            desired: What they are to hold.
            fleet: Where what they say goes.
            readiness: Told whether any replica holds the desired state.
            concerns: Called with the uid of an asset or dispatch there is news of.
            accepted: Called when a replica has stored a version.
            knows: Tells whether there is an asset or dispatch of a uid; of others nothing is kept.
        """
        self._settings = settings
        self._desired = desired
        self._fleet = fleet
        self._readiness = readiness
        self._concerns = concerns
        self._accepted = accepted
        self._knows = knows
        self._links: dict[str, asyncio.Task[None]] = {}
        self._history: deque[control_pb2.HeadendTransition] = deque(maxlen=HISTORY_LIMIT)
        readiness.waiting("gateways", "no replica holds the desired state yet")

    def record(self, transition: control_pb2.HeadendTransition) -> None:
        """Send a transition to the history, by any replica; kept until there is one."""
        if not self._desired.tell_any(control_pb2.OperatorMessage(transition=transition)):
            if len(self._history) == HISTORY_LIMIT:
                metrics.HISTORY_DROPPED.inc()
                _log.error("history.dropped", dispatch_uid=self._history[0].dispatch_uid)
            self._history.append(transition)

    async def run(self) -> None:
        """Keep a stream to every replica, until cancelled."""
        try:
            while True:
                await self._follow_addresses()
                await asyncio.sleep(RESOLVE_SECONDS if self._fleet.expected else 1.0)
        finally:
            for task in self._links.values():
                task.cancel()
            await asyncio.gather(*self._links.values(), return_exceptions=True)

    async def _follow_addresses(self) -> None:
        addresses, complete = await _resolve(self._settings.gateways)
        self._fleet.expected = len(addresses) if complete else None
        metrics.GATEWAYS_EXPECTED.set(len(addresses))
        metrics.BACKLOG_BYTES.set(self._desired.backlog_bytes)
        for address in addresses - self._links.keys():
            self._links[address] = asyncio.create_task(self._keep_link(address), name=address)
        if complete:
            for address in self._links.keys() - addresses:
                self._links.pop(address).cancel()

    async def _keep_link(self, address: str) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await self._sync(address)
                why = "the replica ended the stream"
            except (grpc.RpcError, asyncio.InvalidStateError, OSError, ValueError) as error:
                why = _describe(error)
            held = time.monotonic() - started
            failures = 0 if held > 10 else failures + 1
            low, high = _BACKOFF_SECONDS
            seconds = min(high, low * 1.6**failures) * random.uniform(0.5, 1.0)
            _log.warning(
                "gateway.disconnected",
                address=address,
                why=why,
                held_seconds=round(held, 1),
                again_seconds=round(seconds, 2),
            )
            await asyncio.sleep(seconds)

    async def _sync(self, address: str) -> None:
        credentials = await asyncio.to_thread(_credentials, self._settings.control_tls_directory)
        options = (
            *_CHANNEL_OPTIONS,
            ("grpc.ssl_target_name_override", self._settings.gateway_server_name),
        )
        async with grpc.aio.secure_channel(address, credentials, options) as channel:
            call = control_pb2_grpc.ControlStub(channel).Sync()  # type: ignore[no-untyped-call]
            subscription = self._desired.subscribe()
            link = _Link(self, address, call, subscription)
            try:
                await link.run()
            finally:
                self._desired.unsubscribe(subscription)
                call.cancel()
                link.close()
                self._note_readiness()

    def _drain_history(self) -> None:
        while self._history:
            message = control_pb2.OperatorMessage(transition=self._history[0])
            if not self._desired.tell_any(message):
                return
            self._history.popleft()

    def _note_readiness(self) -> None:
        replicas = self._fleet.replicas.values()
        metrics.GATEWAYS_CONNECTED.set(sum(each.connected for each in replicas))
        if any(each.connected and each.synced_us for each in replicas):
            self._readiness.found("gateways")
        else:
            self._readiness.waiting("gateways", "no replica holds the desired state")


class _Link:
    """One stream to one replica. One task writes, one reads; the first to end ends both."""

    def __init__(
        self,
        headend: Headend,
        address: str,
        call: Any,
        subscription: Subscription,
    ) -> None:
        self._headend = headend
        self._fleet = headend._fleet  # noqa: SLF001 - a part of the headend
        self._desired = headend._desired  # noqa: SLF001
        self._address = address
        self._call = call
        self._subscription = subscription
        self._replica: str | None = None

    async def run(self) -> None:
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        overrun = asyncio.create_task(self._end_where_too_slow())  # the writer may be stuck
        tasks = {writer, reader, overrun}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    def close(self) -> None:
        """Note in the fleet that the replica is lost."""
        if self._replica is not None:
            self._fleet.lose_replica(self._replica, _now_us())

    async def _write(self) -> None:
        while messages := await self._subscription.get():
            if self._replica is not None:
                self._fleet.note_sent(self._replica, messages[-1].version)
            message = messages[0]
            if len(messages) > 1:
                batch = control_pb2.OperatorBatch(messages=messages)
                message = control_pb2.OperatorMessage(batch=batch)
            await self._call.write(message)

    async def _end_where_too_slow(self) -> None:
        await self._subscription.overrun.wait()
        metrics.BACKLOG_OVERRUNS.inc()
        raise ValueError(f"more than {BACKLOG_BYTES} bytes wait to be read by it")

    async def _read(self) -> None:
        async with asyncio.timeout(HELLO_SECONDS):
            first = await self._call.read()
        if first is _EOF:
            raise ValueError(f"{await self._call.code()}: {await self._call.details()}")
        if first.WhichOneof("kind") != "hello":
            raise ValueError("the replica did not say hello first")
        self._welcome(first.hello)
        while (message := await self._call.read()) is not _EOF:
            self._take(message)
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            raise ValueError(f"{code.name}: {await self._call.details()}")

    def _welcome(self, hello: control_pb2.ReplicaHello) -> None:
        known = self._fleet.replicas.get(hello.replica)
        if known is not None and known.connected:
            raise ValueError(f"two gateways call themselves {hello.replica}")
        self._replica = hello.replica
        if hello.takes_batches:
            self._subscription.most = MAX_BATCH
        # The snapshot may be on its way already: count everything as possibly received.
        version = self._desired.version
        self._fleet.add_replica(hello.replica, hello.state_since_us, version, _now_us())
        for uid, epoch in self._fleet.epochs().items():
            self._tell_epoch(uid, epoch, only=True)
        self._headend._drain_history()  # noqa: SLF001
        _log.info("gateway.connected", address=self._address, replica=hello.replica)

    def _take(self, message: control_pb2.ReplicaMessage) -> None:
        kind, name = message.WhichOneof("kind"), self._replica
        if name is None or kind is None or not self._is_of_use(message, kind):
            return
        if kind == "accepted_version":
            self._fleet.note_accepted(name, message.accepted_version, _now_us())
            self._headend._note_readiness()  # noqa: SLF001
            self._headend._accepted()  # noqa: SLF001
        elif kind == "session":
            epoch = self._fleet.note_session(name, message.session)
            if epoch:
                self._tell_epoch(message.session.asset_uid, epoch)
            self._headend._concerns(message.session.asset_uid)  # noqa: SLF001
        elif kind == "delivery":
            self._fleet.note_delivery(name, message.delivery)
            self._headend._concerns(message.delivery.dispatch_uid)  # noqa: SLF001
        elif kind == "report":
            self._take_report(message.report)
        elif kind == "batch":
            for each in message.batch.messages:
                self._take(each)

    def _is_of_use(self, message: control_pb2.ReplicaMessage, kind: str) -> bool:
        """Tell whether what a replica says is of something that there is; one may lie.

        Raises:
            ValueError: It is greater than anything that a replica has to say.
        """
        if kind in {"accepted_version", "batch"}:
            return True
        if message.ByteSize() > MAX_SAID_BYTES:
            raise ValueError(f"{kind} has more than {MAX_SAID_BYTES} bytes")
        uid = {
            "session": message.session.asset_uid,
            "delivery": message.delivery.dispatch_uid,
            "report": message.report.report.dispatch_uid,
        }.get(kind, "")
        return self._headend._knows(uid)  # noqa: SLF001

    def _take_report(self, message: control_pb2.AgentReport) -> None:
        phase = message.report.phase
        if phase not in set(Phase):
            _log.error("report.not_understood", phase=phase, uid=message.report.dispatch_uid)
            return
        if self._fleet.note_report(message):
            self._headend._concerns(message.report.dispatch_uid)  # noqa: SLF001

    def _tell_epoch(self, asset_uid: str, epoch: int, *, only: bool = False) -> None:
        if len(self._fleet.replicas) < 2:
            return
        seen = control_pb2.EpochSeen(asset_uid=asset_uid, epoch=epoch)
        message = control_pb2.OperatorMessage(epoch_seen=seen)
        self._desired.tell(message, to=self._subscription if only else None)


async def _resolve(targets: tuple[str, ...]) -> tuple[set[str], bool]:
    """Return the addresses of all targets, and whether every name was resolved."""
    loop = asyncio.get_running_loop()
    addresses: set[str] = set()
    complete = True
    for target in targets:
        host, _, port = target.rpartition(":")
        try:
            found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            _log.warning("gateway.not_resolved", target=target, why=str(error))
            complete = False
            continue
        addresses |= _one_family([(each[0], str(each[4][0])) for each in found], port)
    return addresses, complete


def _one_family(found: list[tuple[int, str]], port: str) -> set[str]:
    """Return gRPC targets; on a dual-stack name only IPv4, or each replica would count twice."""
    four = {f"ipv4:{ip}:{port}" for family, ip in found if family == socket.AF_INET}
    return four or {f"ipv6:[{ip}]:{port}" for _, ip in found}


def _credentials(directory: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=(directory / "ca.crt").read_bytes(),
        private_key=(directory / "tls.key").read_bytes(),
        certificate_chain=(directory / "tls.crt").read_bytes(),
    )


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def _now_us() -> int:
    return time.time_ns() // 1000
