"""What is known of one asset's stream, and of one dispatch, over all gateway replicas."""

from dataclasses import dataclass, replace
from enum import StrEnum

from derops.data_path import AssetFault
from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, dispatch_pb2

LOST_AFTER_US = 30 * SECOND_US
"""How long the sessions of a lost replica still count."""

CLONE_SUSPECTED = "CloneSuspected"
"""Why a replica refused or ended a stream of an identity that two processes use."""


class Connectivity(StrEnum):
    """Whether an asset's agent has a stream."""

    CONNECTED = "Connected"
    DISCONNECTED = "Disconnected"
    UNKNOWN = "Unknown"
    """Its replica is lost, or no replica could tell for too long."""

    UNHEARD = "Unheard"
    """Nobody was asked yet: what was known stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathView:
    """What its gateway judges of the data path of an asset with a stream."""

    fault: AssetFault | None
    """Why its data stops; None = it reaches the event log."""

    message: str = ""
    shown_us: int = 0
    """From when on it is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """The one stream of an asset, over all replicas."""

    link: Connectivity
    since_us: int = 0
    serial_number: str = ""
    end_reason: str = ""
    capability: agent_pb2.Capability | None = None
    suspected_us: int = 0
    """When a replica last suspected a clone, by a clock of its own; 0 = never."""

    device: agent_pb2.DeviceFacts | None = None
    """What the agent says of its device; None = nothing since its stream is open, or there is
    none."""

    device_again_us: int | None = None
    """When what it has said since may be shown; None = that is shown."""

    path: PathView | None = None
    """What its gateway judges of its data path; None = nothing, or there is no stream."""

    asked_us: int = 0
    """From when on its gateway could have told of its data path."""

    stopped_us: int | None = None
    """From when on nobody has told that its data flows; None = it flows, or nobody was asked."""


class Doubt(StrEnum):
    """Whether a ledger before the one that refuses a dispatch may have run it."""

    NONE = ""
    OPEN = "Open"
    """A gateway that may have given it to an earlier ledger has yet to be heard."""

    LASTING = "Lasting"
    """A gateway does not remember back to its creation, and the ledger may be younger, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Where one replica stands with one dispatch."""

    replica: str
    connected: bool
    state_since_us: int
    accepted: bool
    """It stored the order as it is now."""

    generation: int | None
    """That it holds; None = it has not said."""

    written_us: int
    ledger_id: str = ""
    """Of the agent that it first wrote it to."""

    def doubt(self, created_us: int) -> Doubt:
        """Tell what this replica leaves open of the ledgers that a dispatch was written to."""
        if self.state_since_us > created_us:
            return Doubt.LASTING
        may_write = not self.connected and not self.written_us
        return Doubt.OPEN if self.generation is None or may_write else Doubt.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedDispatch:
    """What is known of one dispatch, over all replicas."""

    holdings: tuple[Holding, ...] = ()
    complete: bool = False
    """All configured replicas are connected; without that nothing can be ruled out."""

    cancelled: bool = False
    """Whether the order that the holdings have accepted is a cancelled one."""

    report: dispatch_pb2.DispatchReport | None = None
    received_us: int = 0
    disk_lost: bool = False
    """Whether a new ledger said that it does not know the dispatch: the ledger of ``report`` is
    lost, and says no more."""

    ledger_since_us: int | None = None
    """When the ledger of ``report`` was first heard of; None = with this dispatch."""

    strangers_until_us: int = 0
    """A replica that this process never heard may hold what was created before this."""

    withheld: dispatch_pb2.DispatchReport | None = None
    """A refusal that does not count yet."""

    @property
    def written_us(self) -> int:
        """The first write to a live stream; 0 = none is known of."""
        return min((each.written_us for each in self.holdings if each.written_us), default=0)

    @property
    def lost_ledger_id(self) -> str:
        """The ledger that had it before the one that reports and never applied it; empty = none."""
        report = self.report
        if report is None or report.applied_us:
            return ""
        own_us = min(
            (each.written_us for each in self.holdings if each.ledger_id == report.ledger_id),
            default=None,
        )
        # A ledger that has a follower is gone: what is written to it after that nobody reads.
        return max(
            (
                each.ledger_id
                for each in self.holdings
                if each.ledger_id != report.ledger_id
                and (own_us is None or each.written_us <= own_us)
            ),
            default="",
        )

    def doubt(self, created_us: int) -> Doubt:
        """Tell whether an earlier ledger may have had what the one that reports refuses at sight.

        A ledger that was there before the dispatch is the only one; else each replica that may
        have written it must rule out that it did so to another.
        """
        if self.report is None or not _is_refusal(self.report):
            return Doubt.NONE
        if self.ledger_since_us is not None and self.ledger_since_us <= created_us:
            return Doubt.NONE
        doubts = {each.doubt(created_us) for each in self.holdings}
        if created_us < self.strangers_until_us:
            doubts.add(Doubt.OPEN)
        return next((each for each in (Doubt.LASTING, Doubt.OPEN) if each in doubts), Doubt.NONE)

    def without_open_doubt(self, created_us: int) -> "ReportedDispatch":
        """Return what counts: not a refusal that a replica may yet contradict."""
        if self.doubt(created_us) is not Doubt.OPEN:
            return self
        return replace(self, report=None, received_us=0, withheld=self.report)

    def is_unsent(self, created_us: int) -> bool:
        """Tell whether it is known that no agent got this dispatch so far.

        Each replica that may hold it must be connected, remember back to the dispatch's creation,
        and have said that it never wrote it: silence proves nothing.
        """
        return (
            self.complete
            and self.report is None
            and bool(self.holdings)
            and all(
                each.connected
                and each.generation is not None
                and each.state_since_us <= created_us
                and each.written_us == 0
                for each in self.holdings
            )
        )

    def is_never_delivered(self, generation: int, created_us: int) -> bool:
        """Tell whether it is proven that no agent got this dispatch, and none will.

        A replica that holds it cancelled will not write it any more; one that holds it as it was
        may do so at any moment.
        """
        return (
            self.cancelled
            and self.is_unsent(created_us)
            and all(
                each.accepted and each.generation is not None and each.generation >= generation
                for each in self.holdings
            )
        )


def _is_refusal(report: dispatch_pb2.DispatchReport) -> bool:
    """Tell whether a ledger refuses what it never had; one that lost its forerunner says so."""
    ended = bool(report.phase) and Phase(report.phase).terminal
    had = max(report.accepted_us, report.applied_us) > 0
    return ended and not had and report.reason != Reason.LEDGER_LOST
