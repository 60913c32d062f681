"""The operator's end of Control.Sync: one stream to each gateway replica, kept up.

Adapter only: what replicas say goes into the fleet, and the keys it concerns into the queue.
"""

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import structlog

from derops.backoff import back_off_seconds, spread_seconds
from derops.lifecycle import Phase
from derops.observability import Readiness
from derops.pem import IdentityFiles
from derops.rates import Rates
from derops.wire.streams import EOF
from derops.wire.v1 import control_pb2, control_pb2_grpc
from derops_operator import metrics
from derops_operator.gateways.desired import BACKLOG_BYTES, Desired, Subscription
from derops_operator.gateways.eras import Start, after_refusal, explain, read_refusal
from derops_operator.gateways.replicas import Fleet
from derops_operator.settings import OperatorSettings

RESOLVE_SECONDS = 10.0
"""How often the addresses of the gateways are looked up."""

MAX_BATCH = 50
"""Messages to a replica in one; none comes near 64 KiB, and gRPC takes 4 MiB."""

MAX_SAID_BYTES = 256 * 1024
"""Of one thing that a replica says; the greatest honest one is a report of 64 KiB."""

STRANGE_LOG_SECONDS = 10.0
"""How often a report that counts for nothing is worth a line, for each reason."""

HELLO_SECONDS = 10.0
"""How long a replica may take to say hello."""

IDENTITY_SECONDS = 5.0
"""How often the files are looked at while a stream lives; a renewed key needs a new stream."""

HISTORY_LIMIT = 20_000
"""Transitions that wait for any gateway; then the oldest go."""

_WORD_SECONDS = 2.0
_BACKOFF_SECONDS = (0.1, 5.0)
_CHANNEL_OPTIONS = (
    # Channels to one address share connections otherwise, and a new certificate would not be seen.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.enable_retries", 0),
)

_PARTS = {
    "OperatorClockAhead": "operator clock",
    "StaleOperator": "operator start",
    "NotTheOperatorsKey": "operator key",
}
"""What is told as degraded where a replica refuses us, by its reason."""

_MAX_WORDS = 300
_NOBODY = "no replica holds the desired state"
_CERTIFICATE = "certificate of the operator"

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
        distrust: Callable[[control_pb2.AgentReport], str | None],
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
            distrust: Returns why a report does not count, of a closed set, or None.
            knows: Tells whether there is an asset or dispatch of a uid; of others nothing is kept.
        """
        self._settings = settings
        self._desired = desired
        self._fleet = fleet
        self._readiness = readiness
        self._concerns = concerns
        self._accepted = accepted
        self._distrust = distrust
        self._strange_lines = Rates(per_second=1 / STRANGE_LOG_SECONDS, burst=1.0)
        self._knows = knows
        self._links: dict[str, asyncio.Task[None]] = {}
        self._history: deque[control_pb2.HeadendTransition] = deque(maxlen=HISTORY_LIMIT)
        readiness.expecting("gateways", f"{_NOBODY} yet")
        self._start = Start(era=desired.era, start_ms=desired.operator_start_ms)
        self._began = time.monotonic()
        self._refusals: dict[str, tuple[str, str]] = {}
        """Part and words, by address."""

        self._failures: dict[str, str] = {}
        """Why there is no stream, by address, or no address, by name."""

        self._unresolved: set[tuple[str, str]] = set()
        """Name and reason of what was said since it last resolved; servers give several in turn."""

        self._open: set[_Link] = set()
        self._speaking: dict[str, _Link] = {}
        """The link that counts, by the name of its replica."""

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
        addresses, unresolved = await _resolve(self._settings.gateways)
        complete = not unresolved
        for target in self._settings.gateways:
            if target not in unresolved:
                self._failures.pop(target, None)
                self._unresolved = {each for each in self._unresolved if each[0] != target}
                continue
            why = unresolved[target]
            self._note_failure(target, why)
            if (target, why) not in self._unresolved:
                self._unresolved.add((target, why))
                _log.warning("gateway.not_resolved", target=target, why=why)
        self._fleet.expected = len(addresses) if complete else None
        metrics.GATEWAYS_EXPECTED.set(len(addresses))
        metrics.BACKLOG_BYTES.set(self._desired.backlog_bytes)
        for address in addresses - self._links.keys():
            self._links[address] = asyncio.create_task(self._keep_link(address), name=address)
        if complete:
            for address in self._links.keys() - addresses:
                self._links.pop(address).cancel()
                self._failures.pop(address, None)
                self._forget_refusal(address)

    async def _keep_link(self, address: str) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await self._serve(address)
                why = "the stream was ended"
            except (grpc.RpcError, asyncio.InvalidStateError, OSError, ValueError) as error:
                why = _describe(error)
                self._hear_refusal(address, error)
            held = time.monotonic() - started
            failures = 0 if held > 10 else failures + 1
            seconds = spread_seconds(back_off_seconds(failures, *_BACKOFF_SECONDS))
            is_new = self._note_failure(address, why)
            _log.log(
                logging.WARNING if is_new else logging.DEBUG,
                "gateway.disconnected",
                address=address,
                why=why,
                held_seconds=round(held, 1),
                again_seconds=round(seconds, 2),
            )
            await asyncio.sleep(seconds)

    async def _serve(self, address: str) -> None:
        """Hold a stream until it ends; with a renewed key, a new stream before the old one goes.

        The new one may be refused while the gateway's mount lags behind ours.
        """
        identity = await self._read_identity()
        current = asyncio.create_task(self._sync(address, identity, asyncio.Event()))
        try:
            while not (await asyncio.wait({current}, timeout=IDENTITY_SECONDS))[0]:
                try:
                    fresh = await self._read_identity()
                except (OSError, ValueError) as error:
                    self._readiness.degraded("control certificate", str(error))
                    continue
                self._readiness.found("control certificate")
                if fresh != identity and (renewed := await self._renew(address, fresh)):
                    current.cancel()
                    await asyncio.gather(current, return_exceptions=True)
                    current, identity = renewed, fresh
            current.result()
        finally:
            current.cancel()
            await asyncio.gather(current, return_exceptions=True)

    async def _renew(self, address: str, identity: IdentityFiles) -> asyncio.Task[None] | None:
        """Return a stream that the replica has taken for the one before; None = it did not."""
        taken = asyncio.Event()
        stream = asyncio.create_task(self._sync(address, identity, taken))
        waiting = asyncio.create_task(taken.wait())
        try:
            await asyncio.wait({stream, waiting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
            raise
        finally:
            waiting.cancel()
        if taken.is_set():
            _log.info("identity.renewed", address=address)
            return stream
        if (error := stream.exception()) is not None:
            _log.warning("identity.not_accepted", address=address, why=_describe(error))
            self._hear_refusal(address, error)
        return None

    async def _read_identity(self) -> IdentityFiles:
        directory = self._settings.control_tls_directory
        found = await asyncio.to_thread(IdentityFiles.read, directory, directory / "ca.crt")
        self._note_end(found)
        return found

    def _note_end(self, identity: IdentityFiles) -> None:
        """Say when our certificate is over, and that it is: no gateway takes it from then on."""
        ends = identity.ends
        metrics.CERTIFICATE_EXPIRY.set(ends.timestamp())
        if time.time() < ends.timestamp():
            self._readiness.found(_CERTIFICATE)
        else:
            why = f"over since {ends:%Y-%m-%d %H:%M} UTC: see why cert-manager does not renew it"
            self._readiness.degraded(_CERTIFICATE, why)

    async def _sync(self, address: str, identity: IdentityFiles, taken: asyncio.Event) -> None:
        credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
        options = (
            *_CHANNEL_OPTIONS,
            ("grpc.ssl_target_name_override", self._settings.gateway_server_name),
        )
        async with grpc.aio.secure_channel(address, credentials, options) as channel:
            call = control_pb2_grpc.ControlStub(channel).Sync()  # type: ignore[no-untyped-call]
            subscription = self._desired.subscribe()
            link = _Link(self, address, call, subscription, taken)
            self._open.add(link)
            try:
                await link.run()
            finally:
                self._open.discard(link)
                self._unsubscribe(subscription)
                call.cancel()
                link.close()

    def _unsubscribe(self, subscription: Subscription) -> None:
        """Stop the changes for one replica; what no snapshot brings again goes to another."""
        for transition in self._desired.unsubscribe(subscription):
            self.record(transition)

    def _hear_refusal(self, address: str, error: BaseException) -> None:
        """Tell why a replica does not take us, and take another start where that is the way."""
        details = (isinstance(error, grpc.aio.AioRpcError) and error.details()) or ""
        reason = details.partition(": ")[0]
        part = _PARTS.get(reason)
        if part is None:
            return
        text, refusal, now_ms = details, read_refusal(details), _now_us() // 1000
        if refusal is not None:
            began_ms = now_ms - round((time.monotonic() - self._began) * 1000)
            self._start = after_refusal(self._start, refusal, began_ms=began_ms, now_ms=now_ms)
            text = f"{explain(self._start, refusal, now_ms)} ({reason})"
        known, _ = self._refusals.get(address, (part, ""))
        self._refusals[address] = (part, f"{address}: {text[:_MAX_WORDS]}")
        for each in {known, part}:
            self._tell_refusals(each)
        if self._start.start_ms != self._desired.operator_start_ms:
            _log.warning(
                "start.renewed", before=self._desired.operator_start_ms, now=self._start.start_ms
            )
            self._desired.operator_start_ms = self._start.start_ms
            for link in self._open:  # each replica is to get a snapshot from this start
                link.stop()

    def _note_accepted(self, address: str) -> None:
        if not self._start.was_accepted:
            self._start = replace(self._start, was_accepted=True)
        self._failures.pop(address, None)
        self._forget_refusal(address)
        self._note_readiness()
        self._accepted()

    def _forget_refusal(self, address: str) -> None:
        part, _ = self._refusals.pop(address, ("", ""))
        if part:
            self._tell_refusals(part)

    def _tell_refusals(self, part: str) -> None:
        words = sorted(text for known, text in self._refusals.values() if known == part)
        if words:
            self._readiness.degraded(part, "; ".join(words))
        else:
            self._readiness.found(part)

    def _is_strange(self, message: control_pb2.AgentReport) -> bool:
        """Tell whether a report does not count; count it, and now and then say so."""
        reason = self._distrust(message)
        if reason is None:
            return False
        metrics.STRANGE_REPORTS.labels(reason=reason).inc()
        if self._strange_lines.admit(reason, time.monotonic()) is not None:
            _log.warning(
                "report.strange",
                reason=str(reason),
                dispatch_uid=message.report.dispatch_uid,
                namespace=message.namespace,
                asset=message.asset_name,
                asset_uid=message.asset_uid,
            )
        return True

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
            why = "; ".join(f"{at}: {why[:_MAX_WORDS]}" for at, why in self._failures.items())
            if why:
                self._readiness.waiting("gateways", f"{_NOBODY}: {why}")
            else:
                self._readiness.expecting("gateways", _NOBODY)

    def _note_failure(self, where: str, why: str) -> bool:
        """Tell why there is no stream; return whether it is another reason than before."""
        is_new = self._failures.get(where) != why
        self._failures[where] = why
        self._note_readiness()
        return is_new


class _Link:
    """One stream to one replica. One task writes, one reads; the first to end ends both."""

    def __init__(
        self,
        headend: Headend,
        address: str,
        call: Any,
        subscription: Subscription,
        taken: asyncio.Event,
    ) -> None:
        self._headend = headend
        self._fleet = headend._fleet  # noqa: SLF001 - a part of the headend
        self._desired = headend._desired  # noqa: SLF001
        self._address = address
        self._call = call
        self._subscription = subscription
        self._taken = taken
        """Set once the replica has stored our snapshot."""

        self._replica: str | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        stopping = asyncio.create_task(self._stopping.wait())
        overrun = asyncio.create_task(self._end_where_too_slow())  # the writer may be stuck
        tasks = (reader, writer, overrun, stopping)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and writer.exception() is not None:
                await asyncio.wait({reader}, timeout=_WORD_SECONDS)  # it hears why
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (reader, writer, overrun):
            if not task.cancelled():
                task.result()

    def stop(self) -> None:
        """End the stream."""
        self._stopping.set()

    def retire(self) -> None:
        """End: a link with a newer key speaks for the replica from here on."""
        self._replica = None
        self._headend._unsubscribe(self._subscription)  # noqa: SLF001
        self.stop()

    def close(self) -> None:
        """Note in the fleet that the replica is lost, unless a newer link speaks for it."""
        if self._replica is not None:
            del self._headend._speaking[self._replica]  # noqa: SLF001
            self._fleet.lose_replica(self._replica, _now_us())
            self._headend._note_readiness()  # noqa: SLF001

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
        if first is EOF:
            raise ValueError(f"{await self._call.code()}: {await self._call.details()}")
        if first.WhichOneof("kind") != "hello":
            raise ValueError("the replica did not say hello first")
        self._welcome(first.hello)
        while (message := await self._call.read()) is not EOF:
            self._take(message)
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            raise ValueError(f"{code.name}: {await self._call.details()}")

    def _welcome(self, hello: control_pb2.ReplicaHello) -> None:
        earlier = self._headend._speaking.get(hello.replica)  # noqa: SLF001
        if earlier is not None:
            if earlier._address != self._address:  # noqa: SLF001
                raise ValueError(f"two gateways call themselves {hello.replica}")
            earlier.retire()
        self._headend._speaking[hello.replica] = self  # noqa: SLF001
        self._replica = hello.replica
        if hello.takes_batches:
            self._subscription.most = MAX_BATCH
        # The snapshot may be on its way already: count everything as possibly received.
        version = self._desired.version
        self._fleet.add_replica(hello.replica, hello.state_since_us, version, _now_us())
        for seen in self._fleet.all_seen():  # also to the only one: its disk may be a new one
            message = control_pb2.OperatorMessage(epoch_seen=seen)
            self._desired.tell(message, to=self._subscription)
        _log.info("gateway.connected", address=self._address, replica=hello.replica)

    def _take(self, message: control_pb2.ReplicaMessage) -> None:
        kind, name = message.WhichOneof("kind"), self._replica
        if name is None or kind is None or not self._is_of_use(message, kind):
            return
        if kind == "accepted_version":
            self._fleet.note_accepted(name, message.accepted_version, _now_us())
            if not self._taken.is_set():
                self._taken.set()
                self._subscription.stored = True
                self._headend._drain_history()  # noqa: SLF001
            self._headend._note_accepted(self._address)  # noqa: SLF001
        elif kind == "session":
            self._take_session(name, message.session)
        elif kind == "device":
            self._fleet.note_device(name, message.device)
            self._headend._concerns(message.device.asset_uid)  # noqa: SLF001
        elif kind == "delivery":
            self._fleet.note_delivery(name, message.delivery)
            self._headend._concerns(message.delivery.dispatch_uid)  # noqa: SLF001
        elif kind == "report":
            self._take_report(message.report)
        elif kind == "batch":
            for each in message.batch.messages:
                self._take(each)

    def _take_session(self, name: str, session: control_pb2.Session) -> None:
        ledger = self._desired.ledger_of(session.asset_uid)
        seen = self._fleet.note_session(name, session, ledger, _now_us())
        if seen is not None and len(self._fleet.replicas) > 1:
            self._desired.tell(control_pb2.OperatorMessage(epoch_seen=seen))
        self._headend._concerns(session.asset_uid)  # noqa: SLF001

    def _is_of_use(self, message: control_pb2.ReplicaMessage, kind: str) -> bool:
        """Tell whether what a replica says may be kept; one may lie.

        Sessions, devices and deliveries of nothing that there is are not; reports are judged by
        themselves.

        Raises:
            ValueError: It is greater than anything that a replica has to say.
        """
        if kind == "batch":
            return True
        if message.ByteSize() > MAX_SAID_BYTES:
            raise ValueError(f"{kind} has more than {MAX_SAID_BYTES} bytes")
        if kind == "session":
            return self._headend._knows(message.session.asset_uid)  # noqa: SLF001
        if kind == "device":
            return self._headend._knows(message.device.asset_uid)  # noqa: SLF001
        if kind == "delivery":
            return self._headend._knows(message.delivery.dispatch_uid)  # noqa: SLF001
        return True

    def _take_report(self, message: control_pb2.AgentReport) -> None:
        phase = message.report.phase
        if phase not in set(Phase):
            _log.error("report.not_understood", phase=phase, uid=message.report.dispatch_uid)
            return
        if self._headend._is_strange(message):  # noqa: SLF001
            return
        if self._fleet.note_report(message):
            self._headend._concerns(message.report.dispatch_uid)  # noqa: SLF001


async def _resolve(targets: tuple[str, ...]) -> tuple[set[str], dict[str, str]]:
    """Return the addresses of all targets, and why there is none of a target."""
    loop = asyncio.get_running_loop()
    addresses: set[str] = set()
    unresolved: dict[str, str] = {}
    for target in targets:
        host, _, port = target.rpartition(":")
        try:
            found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            unresolved[target] = str(error)
            continue
        addresses |= _one_family([(each[0], str(each[4][0])) for each in found], port)
    return addresses, unresolved


def _one_family(found: list[tuple[int, str]], port: str) -> set[str]:
    """Return gRPC targets; on a dual-stack name only IPv4, or each replica would count twice."""
    four = {f"ipv4:{ip}:{port}" for family, ip in found if family == socket.AF_INET}
    return four or {f"ipv6:[{ip}]:{port}" for _, ip in found}


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def _now_us() -> int:
    return time.time_ns() // 1000
