"""The gateway's two servers, what they share, and how they end."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog

from derops.observability import Readiness
from derops.wire.v1 import agent_pb2_grpc, control_pb2, control_pb2_grpc
from derops_headend.eventlog.ports import EventLog
from derops_headend.eventlog.words import WriterWords
from derops_headend.gateway import metrics
from derops_headend.gateway.admission_control import AdmissionControl
from derops_headend.gateway.agent_link import HELLO_SECONDS, AgentLink
from derops_headend.gateway.control import Control
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.gateway.exchange import Exchange
from derops_headend.gateway.headend_watch import HeadendWatch
from derops_headend.gateway.listener import CredentialFiles, Port
from derops_headend.gateway.log_appender import LogAppender
from derops_headend.gateway.operator_identity import OperatorIdentity

STOP_SECONDS = 3.0
_SWEEP_SECONDS = 1.0
_STUCK_SECONDS = 10.0
_SNAPSHOT, _EVENT_LOG = "operator snapshot", "event log"
_OPERATOR_CLOCK = "operator clock"

_OPTIONS: list[tuple[str, int]] = [
    # A listener that does not bind alone would hide that another gateway has the port.
    ("grpc.so_reuseport", 0),
    # A connection that does not finish TLS would stay 120 s.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # One that never acknowledges SETTINGS would stay 60 s.
    ("grpc.http2.settings_timeout", 10_000),
    # One that opens no stream would stay for ever.
    ("grpc.max_connection_idle_ms", 30_000),
    # Floods of CONTINUATION and large metadata: we read no metadata at all. Between the first and
    # the second bound gRPC refuses at random; equal bounds are one bound.
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 8192),
    # One connection could open any number of streams; an agent needs one, a renewal two.
    ("grpc.max_concurrent_streams", 4),
    # Finds peers whose packets vanish; the ping timeout is the one that works, the keepalive
    # timeout only sets TCP_USER_TIMEOUT.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # An honest agent pings an idle stream to keep its NAT entry; the default kills it for that.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]
_AGENT_OPTIONS: list[tuple[str, int]] = [
    *_OPTIONS,
    # The cap of the protocol, with room for the envelope; a large message's memory is kept.
    ("grpc.max_receive_message_length", 65536 + 1024),
    # Windows stay at 64 KiB: gRPC would let a fast peer have megabytes on their way, each.
    ("grpc.http2.bdp_probe", 0),
    # The last word over a peer that grants no window for its Bye.
    ("grpc.max_connection_age_grace_ms", 30_000),
]
_CONNECTION_AGE_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """How a gateway is run."""

    replica: str
    trust_domain: str
    agent_listen: str
    agent_files: CredentialFiles
    control_listen: str
    control_files: CredentialFiles
    operator_certificate_file: Path
    heartbeat_seconds: int
    max_agent_connections: int
    """The most open connections on the agent port; one more is closed before TLS."""
    hello_seconds: float = HELLO_SECONDS
    log_shards: int = 1
    """Of the event log, each with a writer."""


class Gateway:
    """One gateway replica: ``start``, then ``stop``."""

    def __init__(
        self,
        options: GatewayOptions,
        *,
        store: DesiredStore,
        log: EventLog,
        words: WriterWords,
        readiness: Readiness,
    ) -> None:
        readiness.waiting(_SNAPSHOT, "the operator has not sent one and none is on disk")
        self.agent_port = self.control_port = 0
        self._options = options
        self._readiness = readiness
        self._journal = LogAppender(log, options.replica, _now_us, self._note_log_failure)
        self.exchange = Exchange(
            replica=options.replica,
            store=store,
            journal=self._journal,
            admission=AdmissionControl(
                log.fill,
                lambda: self._journal.unstored.is_crowded,
                lambda: self._journal.append_seconds,
            ),
            now_us=_now_us,
            on_ready=lambda: readiness.found(_SNAPSHOT),
            on_clock_ahead=self._note_clock_ahead,
        )
        self._watch = HeadendWatch(
            words,
            range(options.log_shards),
            log.fill,
            _now_us,
            lambda state: self.exchange.operator.tell(control_pb2.ReplicaMessage(headend=state)),
        )
        self.exchange.headend = self._watch.state
        identity = OperatorIdentity(options.operator_certificate_file, store, readiness, _now_us)
        self._control = Control(self.exchange, identity, trust_domain=options.trust_domain)
        self._store = store
        self._tasks: list[asyncio.Task[None]] = []
        self.ports: tuple[Port, ...] = ()
        self._alive_at = time.monotonic()

    async def start(self) -> None:
        """Listen on both ports; ``agent_port`` and ``control_port`` are set then.

        Raises:
            SettingError: A port cannot be bound, or has no certificate.
        """
        options = self._options
        link = AgentLink(
            self.exchange,
            trust_domain=options.trust_domain,
            heartbeat_seconds=options.heartbeat_seconds,
            monotonic_us=lambda: time.monotonic_ns() // 1000,
            hello_seconds=options.hello_seconds,
        )

        def serve_agents() -> grpc.aio.Server:
            # Spread, so that agents which came together do not all reconnect together.
            age_ms = _CONNECTION_AGE_MS + random.randrange(_CONNECTION_AGE_MS // 10)
            server = grpc.aio.server(
                options=[
                    *_AGENT_OPTIONS,
                    ("grpc.max_connection_age_ms", age_ms),
                    ("grpc.max_allowed_incoming_connections", options.max_agent_connections),
                ]
            )
            agent_pb2_grpc.add_AgentLinkServicer_to_server(link, server)  # type: ignore[no-untyped-call]  # generated
            return server

        def serve_operator() -> grpc.aio.Server:
            server = grpc.aio.server(options=_OPTIONS)
            control_pb2_grpc.add_ControlServicer_to_server(self._control, server)  # type: ignore[no-untyped-call]  # generated
            return server

        agents = Port(
            "agent",
            "DEROPS_GATEWAY_AGENT_LISTEN",
            options.agent_listen,
            options.agent_files,
            serve_agents,
            self._readiness,
            lambda: datetime.now(UTC),
            is_vital=True,
        )
        control = Port(
            "control",
            "DEROPS_GATEWAY_CONTROL_LISTEN",
            options.control_listen,
            options.control_files,
            serve_operator,
            self._readiness,
            lambda: datetime.now(UTC),
            is_vital=False,
        )
        for port in (agents, control):
            await port.open()
        self.agent_port, self.control_port = agents.number, control.number
        self.ports = (agents, control)
        for work in (
            self._journal.run(),
            self.exchange.deliveries.writes.run(),
            self.exchange.memories.run(),
            self.exchange.admission.run(),
            self._sweep(),
            self._follow_operator(),
            self._watch.run(),
            agents.follow(),
            control.follow(),
        ):
            self._tasks.append(asyncio.create_task(work))
        await self._control.end_overdue()  # tells at once where nobody could be the operator
        await asyncio.gather(*(port.start() for port in self.ports))
        structlog.get_logger("gateway").info(
            "gateway.started", agent_port=self.agent_port, control_port=self.control_port
        )

    async def stop(self) -> None:
        """Say Bye to all, make durable what has arrived, and close; well below 5 s."""
        *commits, admission, sweep, operator, watch, agents, control = self._tasks
        for task in (agents, control):
            task.cancel()
        await asyncio.gather(agents, control, return_exceptions=True)
        self.exchange.end_all("GatewayStopping", "the gateway is shutting down")
        await asyncio.gather(*(port.close(STOP_SECONDS) for port in self.ports))
        self._journal.close()
        self.exchange.deliveries.writes.close()
        self.exchange.memories.close()
        for task in (admission, sweep, operator, watch):
            task.cancel()
        await asyncio.wait(commits, timeout=1)
        for task in commits:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._store.close()

    def alive(self) -> bool:
        """Tell whether the event loop still turns and its tasks live; from any thread."""
        turning = time.monotonic() - self._alive_at < _STUCK_SECONDS
        return turning and not any(task.done() for task in self._tasks)

    def _note_log_failure(self, why: str) -> None:
        """Show whether the log takes what arrives; streams stay and dispatches go on anyway."""
        metrics.LOG_FAILING.set(bool(why))
        self._watch.log_failure = why
        if why:
            metrics.LOG_FAILURES.inc()
            self._readiness.degraded(_EVENT_LOG, why)
        else:
            self._readiness.found(_EVENT_LOG)

    def _note_clock_ahead(self, seconds: int) -> None:
        """Show by how much desired state comes from the future; the stored one is served on."""
        metrics.OPERATOR_CLOCK_AHEAD.set(seconds)
        if seconds:
            self._readiness.degraded(
                _OPERATOR_CLOCK,
                f"{seconds} s ahead of this gateway's; compare both clocks (OperatorClockAhead)",
            )
        else:
            self._readiness.found(_OPERATOR_CLOCK)

    async def _sweep(self) -> None:
        while True:
            self._alive_at = time.monotonic()
            self.exchange.measure()
            await self.exchange.end_overdue()
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _follow_operator(self) -> None:
        """Follow the operator's key; apart from the sweep, as this may wait for a disk."""
        while True:
            await self._control.end_overdue()
            await asyncio.sleep(_SWEEP_SECONDS)


def _now_us() -> int:
    return time.time_ns() // 1000
