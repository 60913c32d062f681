"""The operator's end of Control.Sync: which gateway replicas there are, and what is told of them.

Adapter only: it keeps one stream to each replica up. The stream itself is in ``link``, what comes
of what a replica says in ``intake``.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import grpc
import structlog

from derops.backoff import back_off_seconds, spread_seconds
from derops.log_fields import dispatch_fields
from derops.observability import Readiness
from derops.pem import IdentityFiles
from derops.wire.v1 import control_pb2, control_pb2_grpc
from derops_operator import metrics
from derops_operator.gateways.addresses import resolve_addresses
from derops_operator.gateways.desired import Desired, Subscription
from derops_operator.gateways.eras import Start
from derops_operator.gateways.history import WaitingHistory
from derops_operator.gateways.intake import ReplicaIntake
from derops_operator.gateways.link import ReplicaLink
from derops_operator.gateways.refusals import MAX_WORDS, GatewayRefusals
from derops_operator.gateways.replicas import Fleet
from derops_operator.settings import OperatorSettings

RESOLVE_SECONDS = 10.0
"""How often the addresses of the gateways are looked up."""

IDENTITY_SECONDS = 5.0
"""How often the files are looked at while a stream lives; a renewed key needs a new stream."""

HISTORY_LIMIT = 20_000
"""Transitions that wait for any gateway; then the oldest go, of the namespace that has most."""

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

_NOBODY = "no replica holds the desired state"
_CERTIFICATE = "certificate of the operator"

_log = structlog.get_logger("headend")


class GatewaySync:
    """Holds a stream to each gateway replica; hears from the links it opens."""

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
            concerns: Called with the uid of each asset or dispatch that there is news of.
            accepted: Called when a replica has stored a version.
            distrust: Returns why a report does not count, of a closed set, or None.
            knows: Tells whether there is an asset or dispatch of a uid; of others nothing is kept.
        """
        self._settings = settings
        self._desired = desired
        self._fleet = fleet
        self._readiness = readiness
        self._accepted = accepted
        self._intake = ReplicaIntake(desired, fleet, concerns, distrust, knows, _now_us)
        self._links: dict[str, asyncio.Task[None]] = {}
        self._history = WaitingHistory(HISTORY_LIMIT)
        readiness.expecting("gateways", f"{_NOBODY} yet")
        start = Start(era=desired.era, start_ms=desired.operator_start_ms)
        self._refusals = GatewayRefusals(start, readiness, _now_us)
        self._failures: dict[str, str] = {}
        """Why there is no stream, by address, or no address, by name."""

        self._unresolved: set[tuple[str, str]] = set()
        """Name and reason of what was said since it last resolved; servers give several in turn."""

        self._open: set[ReplicaLink] = set()
        self._speaking: dict[str, ReplicaLink] = {}
        """The link that counts, by the name of its replica."""

    def record(self, transition: control_pb2.HeadendTransition) -> None:
        """Send a transition to the history, by any replica; kept until there is one."""
        if not self._desired.tell_any(control_pb2.OperatorMessage(transition=transition)):
            dropped = self._history.put(transition)
            if dropped is not None:
                metrics.HISTORY_DROPPED.inc()
                _log.error("history.dropped", **_fields_of(dropped))

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

    def welcome(self, link: ReplicaLink, replica: str) -> None:
        """Hear the name of a replica; from here on this link alone speaks for it.

        Raises:
            ValueError: A replica at another address has the same name.
        """
        earlier = self._speaking.get(replica)
        if earlier is not None:
            if earlier.address != link.address:
                raise ValueError(f"two gateways call themselves {replica}")
            earlier.retire()
            self._unsubscribe(earlier.subscription)
        self._speaking[replica] = link

    def note_accepted(self, link: ReplicaLink) -> None:
        """Hear that the replica has stored a version."""
        self._drain_history()
        self._refusals.note_accepted(link.address)
        self._failures.pop(link.address, None)
        self._note_readiness()
        self._accepted()

    async def _follow_addresses(self) -> None:
        addresses, unresolved = await resolve_addresses(self._settings.gateways)
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
                self._refusals.forget(address)

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
                retry_seconds=round(seconds, 2),
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
            _log.info("certificate.renewed", address=address)
            return stream
        if (error := stream.exception()) is not None:
            _log.warning("certificate.not_accepted", address=address, why=_describe(error))
            self._hear_refusal(address, error)
        return None

    async def _read_identity(self) -> IdentityFiles:
        directory = self._settings.control_tls_directory
        found = await asyncio.to_thread(IdentityFiles.read, directory, directory / "ca.crt")
        self._note_end(found)
        return found

    def _note_end(self, identity: IdentityFiles) -> None:
        """Tell when our certificate expires, and that it has: no gateway takes it from then on."""
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
            link = ReplicaLink(address, call, subscription, taken, self._fleet, self._intake, self)
            self._open.add(link)
            try:
                await link.run()
            finally:
                self._open.discard(link)
                self._unsubscribe(subscription)
                call.cancel()
                self._lose(link)

    def _unsubscribe(self, subscription: Subscription) -> None:
        """Stop the changes for one replica; what no snapshot brings again goes to another one."""
        for transition in self._desired.unsubscribe(subscription):
            self.record(transition)

    def _lose(self, link: ReplicaLink) -> None:
        """Note in the fleet that the replica is lost, unless a newer link speaks for it."""
        if link.replica is not None:
            del self._speaking[link.replica]
            self._fleet.lose_replica(link.replica, _now_us())
            self._note_readiness()

    def _hear_refusal(self, address: str, error: BaseException) -> None:
        """Hear why a stream ended; where another start follows, give it to all replicas."""
        details = (isinstance(error, grpc.aio.AioRpcError) and error.details()) or ""
        self._refusals.hear(address, details)
        before_ms, start_ms = self._desired.operator_start_ms, self._refusals.start_ms
        if start_ms != before_ms:
            _log.warning("start.renewed", before_ms=before_ms, now_ms=start_ms)
            self._desired.operator_start_ms = start_ms
            for link in self._open:  # each replica is to get a snapshot from this start
                link.stop()

    def _drain_history(self) -> None:
        while (transition := self._history.first()) is not None:
            message = control_pb2.OperatorMessage(transition=transition)
            if not self._desired.tell_any(message):
                return
            self._history.pop()

    def _note_readiness(self) -> None:
        replicas = self._fleet.replicas.values()
        metrics.GATEWAYS_CONNECTED.set(sum(each.connected for each in replicas))
        if any(each.connected and each.synced_us for each in replicas):
            self._readiness.found("gateways")
        else:
            why = "; ".join(f"{at}: {why[:MAX_WORDS]}" for at, why in self._failures.items())
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


def _fields_of(message: control_pb2.HeadendTransition) -> dict[str, str]:
    return dispatch_fields(
        namespace=message.asset.namespace,
        asset=message.asset.name,
        dispatch=message.dispatch_name,
        uid=message.dispatch_uid,
        request_id=message.request_id,
    )


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def _now_us() -> int:
    return time.time_ns() // 1000
