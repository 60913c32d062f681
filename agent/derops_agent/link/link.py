"""The link that keeps one asset connected: certificates, channels and back-off."""

import asyncio
import random
import re
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import structlog

from derops.backoff import back_off_seconds, spread_seconds
from derops.ids import AssetName
from derops.observability import Readiness
from derops.pem import IdentityFiles
from derops.wire.v1 import agent_pb2
from derops_agent import metrics
from derops_agent.asset.controller import AssetController
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.ledger import Ledger
from derops_agent.clock import Clock
from derops_agent.execution.wire import write_capability
from derops_agent.link.outlet import StreamOutlet
from derops_agent.link.reasons import EndReason
from derops_agent.link.stream import Stream, StreamEndedError
from derops_agent.storage import Runner
from derops_agent.telemetry.outbox import Outbox

FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
CERTIFICATE_CHECK_SECONDS = 5.0
_HIGHEST = re.compile(r"highest known epoch is (\d{1,19})")
_FLOOR = re.compile(r"floor (\d{1,19}): .*")
_TAKEOVER_SECONDS = 30.0
_CLOSE_SECONDS = 2.0
_CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    # Channels to one address would share connections, and a new certificate would not be shown.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 1 << 20),
    # This module retries by itself: a transparent retry would send Hello with a used epoch.
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Which gateways to dial, whom to expect there, and what to show them."""

    gateways: tuple[str, ...]
    server_name: str
    server_ca_file: Path
    certificate_directory: Path

    def read_credentials(self) -> IdentityFiles:
        """Read the files; blocks.

        Raises:
            OSError: A file cannot be read, perhaps not yet.
            ValueError: A file is not what it should be, perhaps not yet.
        """
        return IdentityFiles.read(self.certificate_directory, self.server_ca_file)


@dataclass(slots=True)
class _Running:
    stream: Stream
    task: asyncio.Task[StreamEndedError]
    credentials: IdentityFiles


class Link:
    """Dials the gateways one after the other, for ever."""

    def __init__(
        self,
        name: AssetName,
        endpoint: Endpoint,
        *,
        controller: AssetController,
        device: GuardedDevice,
        ledger: Ledger,
        outbox: Outbox,
        outlet: StreamOutlet,
        clock: Clock,
        run_ledger: Runner,
        run_outbox: Runner,
        instance_id: str,
        software_version: str,
        readiness: Readiness,
    ) -> None:
        self._name, self._endpoint, self._readiness = name, endpoint, readiness
        self._part = f"certificate of {name}"
        self._controller, self._device, self._ledger = controller, device, ledger
        self._outbox, self._outlet, self._clock = outbox, outlet, clock
        self._run_ledger, self._run_outbox = run_ledger, run_outbox
        self._instance_id, self._software_version = instance_id, software_version
        self._gateway = random.randrange(len(endpoint.gateways))
        self._above_epoch = 0
        self._epochs_behind_ms = 0
        """By how much the clock was ahead of the epoch that a gateway named."""

        self._failures = 0
        self._started: list[_Running] = []
        self._log = structlog.get_logger("link")

    async def run(self) -> None:
        """Keep a stream open until cancelled, then end it with a Bye."""
        try:
            while True:
                running = await self._start(await self._wait_for_credentials())
                await self._after(await self._serve(running))
        finally:
            await self._close_all()

    async def _serve(self, running: _Running) -> StreamEndedError:
        """Wait until the stream ends; move to a new certificate meanwhile."""
        while True:
            if running.stream.synchronised.is_set():
                self._failures = 0
            done, _ = await asyncio.wait({running.task}, timeout=CERTIFICATE_CHECK_SECONDS)
            if done:
                self._started.remove(running)
                if running.stream.synchronised.is_set():
                    self._failures = 0
                return running.task.result()
            try:
                fresh = await asyncio.to_thread(self._endpoint.read_credentials)
            except (OSError, ValueError) as error:
                self._readiness.degraded(self._part, str(error))
                continue
            self._readiness.found(self._part)
            self._note_end(fresh)
            if fresh != running.credentials:
                running = await self._renew(running, fresh)

    async def _renew(self, old: _Running, fresh: IdentityFiles) -> _Running:
        """Open a stream with the new certificate first, and only then close the old one."""
        old.stream.hold_telemetry()  # or the new stream's Hello would not be true for long
        new = await self._start(fresh)
        synchronised = asyncio.create_task(new.stream.synchronised.wait())
        try:
            await asyncio.wait(
                {new.task, synchronised},
                timeout=_TAKEOVER_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            synchronised.cancel()
        if new.stream.synchronised.is_set():
            self._log.info("certificate.renewed")
            await self._close(old, EndReason.CERTIFICATE_RENEWED)
            return new
        self._log.warning("certificate.not_accepted", why="the old stream stays")
        if new.task.done():
            await self._learn(new.task.result())
        await self._close(new, EndReason.WITHDRAWN)
        self._outlet.use(old.stream)
        old.stream.resume_telemetry()
        old.stream.report_all()
        return old

    async def _start(self, credentials: IdentityFiles) -> _Running:
        epoch_ms = self._clock.now_us() // 1000 - self._epochs_behind_ms
        epoch = await self._run_ledger(
            lambda: self._ledger.next_epoch(epoch_ms, above=self._above_epoch)
        )
        self._above_epoch = 0
        hello = agent_pb2.Hello(
            protocol=1,
            epoch=epoch,
            instance_id=self._instance_id,
            ledger_id=self._ledger.ledger_id,
            outbox_id=self._outbox.outbox_id,
            first_sequence=self._outbox.first_sequence,
            software_version=self._software_version,
            capability=write_capability(self._device.capability),
            highest_revision=self._controller.revisions.heard,
        )
        stream = Stream(
            self._open_channel(credentials),
            hello,
            self._controller,
            self._outbox,
            self._clock,
            self._run_outbox,
        )
        task = asyncio.create_task(stream.run_until_end())
        running = _Running(stream, task, credentials)
        self._started.append(running)
        self._outlet.use(stream)
        return running

    def _open_channel(self, credentials: IdentityFiles) -> grpc.aio.Channel:
        target = self._endpoint.gateways[self._gateway % len(self._endpoint.gateways)]
        return grpc.aio.secure_channel(
            target,
            grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.certificate),
            options=[
                *_CHANNEL_OPTIONS,
                # This does not weaken the check: the gateway's certificate carries a fixed name,
                # whatever host or address is dialled.
                ("grpc.ssl_target_name_override", self._endpoint.server_name),
            ],
        )

    async def _wait_for_credentials(self) -> IdentityFiles:
        while True:
            try:
                credentials = await asyncio.to_thread(self._endpoint.read_credentials)
            except (OSError, ValueError) as error:
                self._readiness.waiting(self._part, str(error))
                await asyncio.sleep(1)
                continue
            self._readiness.found(self._part)
            self._note_end(credentials)
            return credentials

    def _note_end(self, credentials: IdentityFiles) -> None:
        """Note when the certificate is over; the readiness says so once it is."""
        part, ends = f"certificate's end of {self._name}", credentials.ends
        metrics.note_certificate_end(str(self._name), ends.timestamp())
        if self._clock.now_us() < ends.timestamp() * 1_000_000:
            self._readiness.found(part)
        else:
            why = f"over since {ends:%Y-%m-%d %H:%M} UTC: no gateway takes it, renew it"
            self._readiness.degraded(part, why)

    async def _after(self, ended: StreamEndedError) -> None:
        """Learn from the end of a stream, then wait: each time for up to twice as long."""
        metrics.count_end(ended.reason)
        await self._learn(ended)
        self._gateway += 1
        most = back_off_seconds(self._failures, FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS)
        self._failures += 1
        delay = spread_seconds(most, least_share=0)
        self._log.info(
            "stream.ended",
            reason=ended.reason,
            why=ended.message,
            retry_seconds=round(delay, 2),
        )
        await asyncio.sleep(delay)

    async def _learn(self, ended: StreamEndedError) -> None:
        """Take the epoch that the gateway says to exceed, or to go on from."""
        if ended.reason == "EpochTooLow" and (told := _HIGHEST.fullmatch(ended.message)):
            self._above_epoch = int(told[1])
        if ended.reason == "EpochTooHigh" and (told := _FLOOR.fullmatch(ended.message)):
            floor = int(told[1])
            # Without the difference, the clock would get each later connection refused once.
            self._epochs_behind_ms = self._clock.now_us() // 1000 - floor
            await self._run_ledger(lambda: self._ledger.go_on_from(floor))

    async def _close(self, running: _Running, reason: EndReason) -> None:
        running.stream.close(reason)
        _, pending = await asyncio.wait({running.task}, timeout=_CLOSE_SECONDS)
        for task in pending:
            task.cancel()
            await asyncio.wait({task})
        self._started.remove(running)

    async def _close_all(self) -> None:
        await asyncio.gather(
            *(self._close(running, EndReason.SHUTDOWN) for running in [*self._started])
        )
