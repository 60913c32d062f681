"""Entries on their way into the event log."""

from asyncio import gather
from collections.abc import Callable, Iterable
from functools import partial

from derops.rates import Rates
from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2, dispatch_pb2, log_pb2
from derops_headend.eventlog.ports import EventLog
from derops_headend.eventlog.records import MAX_RECORD_BYTES
from derops_headend.fleet.shares import OVERHEAD_BYTES, Shares
from derops_headend.fleet.telemetry import Violation
from derops_headend.gateway import metrics
from derops_headend.gateway.outlets import AgentOutlet
from derops_headend.group_commit import GroupCommit, Settle

_MAX_MESSAGE = 500
_KIB, _MIB = 1024, 1024**2

UNSTORED_BYTES, UNSTORED_OF_ONE, UNSTORED_SURE = 128 * _MIB, 2 * _MIB, 64 * _KIB
"""Bytes that agents brought and the log has not taken: of all agents, of one, and of each in any
case."""

MAX_WAITING = 20_000
"""How many entries may wait before connection events are left out."""

EVENTS_PER_SECOND, EVENTS_AT_ONCE = 1 / 30, 60.0
"""Connection events of one asset in the history: an agent that reconnects for ever does not fill a
database."""


class LogAppender:
    """Packs what all streams bring into few appends; nothing is acknowledged before its append."""

    def __init__(
        self,
        log: EventLog,
        replica: str,
        now_us: Callable[[], int],
        on_failure: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._replica, self._now_us = replica, now_us
        self.unstored = Shares(total=UNSTORED_BYTES, most=UNSTORED_OF_ONE, sure=UNSTORED_SURE)
        self._rates = Rates(per_second=EVENTS_PER_SECOND, burst=EVENTS_AT_ONCE)
        self._commit: GroupCommit[log_pb2.LogEntry] = GroupCommit(
            log.append,
            size=log_pb2.LogEntry.ByteSize,
            most=MAX_RECORD_BYTES,
            observe=metrics.APPEND_SECONDS.observe,
            on_failure=on_failure,
        )

    @property
    def append_seconds(self) -> float:
        """For how long the append that is under way has been tried; 0 = there is none."""
        return self._commit.seconds_under_way

    def put(
        self,
        kind: log_pb2.EntryKind,
        asset: dispatch_pb2.AssetId,
        body: bytes,
        settle: Settle,
        *,
        refused: str = "",
        clock_offset_milliseconds: int | None = None,
    ) -> None:
        """Queue an entry; ``settle`` is called once it is durable, see GroupCommit.add.

        Args:
            kind: The kind of the entry.
            asset: The asset that it belongs to.
            body: The sender's bytes.
            settle: Is given None, or why the entry will never be durable.
            refused: The rule that a batch broke: the writer puts it into quarantine.
            clock_offset_milliseconds: Our clock less the agent's, if that is worth a note.
        """
        entry = self._entry(kind, asset, body)
        entry.refused = refused
        if clock_offset_milliseconds is not None:
            entry.clock_offset_milliseconds = clock_offset_milliseconds
        self._commit.add(entry, settle)

    def check_room(self, stream: AgentOutlet, body: bytes) -> Violation | None:
        """Return the rule that a stream breaks if it brings too much for the log; None = none."""
        if self.unstored.has_room(stream.session.asset_uid, len(body) + OVERHEAD_BYTES):
            return None
        metrics.BOUND_REACHED.labels("unstored").inc()
        return Violation(
            reason="TooMuchUnstored",
            message=f"the agent outruns the event log: {UNSTORED_OF_ONE} bytes may wait for it, "
            f"and {UNSTORED_SURE} once those of all agents take {UNSTORED_BYTES}",
        )

    def bring(
        self,
        stream: AgentOutlet,
        kind: log_pb2.EntryKind,
        asset: dispatch_pb2.AssetId,
        body: bytes,
        settle: Settle,
        *,
        refused: str = "",
        clock_offset_milliseconds: int | None = None,
    ) -> None:
        """Queue an entry that a stream brought, if ``check_room`` found room for it; see ``put``.

        Its bytes count for its asset until it is settled. If it will never be durable, its stream
        ends before ``settle`` is called.
        """
        size = len(body) + OVERHEAD_BYTES
        self.unstored.add(stream.session.asset_uid, size)
        self.put(
            kind,
            asset,
            body,
            partial(self._settle, stream, size, settle),
            refused=refused,
            clock_offset_milliseconds=clock_offset_milliseconds,
        )

    def _settle(
        self, stream: AgentOutlet, size: int, settle: Settle, error: BaseException | None
    ) -> None:
        self.unstored.add(stream.session.asset_uid, -size)
        if error is not None:
            stream.end("LogUnavailable", "the event log did not take what arrived")
        settle(error)

    def put_connection(
        self,
        asset: dispatch_pb2.AssetId,
        event: str,
        *,
        reason: str = "",
        message: str = "",
        epoch: int = 0,
        peer: str,
        serial_number: str,
    ) -> None:
        """Queue an event of a connection; nobody waits for it.

        While the log takes nothing, a storm of connections must not fill the memory. If an asset
        has too many events, some are left out; the next one says how many.
        """
        left_out = self._rates.admit(asset.uid, self._now_us() / SECOND_US)
        if left_out is None or self._commit.waiting >= MAX_WAITING:
            metrics.UNSTORED_CONNECTIONS.inc()
            return
        if left_out:
            message = f"{left_out} events before this one were left out; {message}"
        body = log_pb2.ConnectionEvent(
            event=event,
            reason=reason,
            message=message[:_MAX_MESSAGE],
            epoch=epoch,
            peer=peer,
            serial_number=serial_number,
            replica=self._replica,
        )
        self.put(log_pb2.CONNECTION, asset, body.SerializeToString(), lambda _: None)

    async def append_transitions(
        self, transitions: Iterable[control_pb2.HeadendTransition]
    ) -> None:
        """Put transitions that no agent reports into the log; return when they are durable."""
        await gather(
            *(
                self._commit.put(
                    self._entry(log_pb2.HEADEND_TRANSITION, each.asset, each.SerializeToString())
                )
                for each in transitions
            )
        )

    def _entry(
        self, kind: log_pb2.EntryKind, asset: dispatch_pb2.AssetId, body: bytes
    ) -> log_pb2.LogEntry:
        return log_pb2.LogEntry(kind=kind, asset=asset, received_us=self._now_us(), body=body)

    async def run(self) -> None:
        """Append until closed and empty. One task runs this."""
        await self._commit.run()

    def close(self) -> None:
        """Let run return once all is appended."""
        self._commit.close()
