"""What the gateway replicas say: sessions, deliveries and reports, folded.

Replicas come and go, and repeat themselves after each connection. Nothing here depends on the
order in which they speak.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum

from derops.devices import bounded
from derops.holders import Holders, Rank, digest_of, is_plausible_epoch, outranks
from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_operator import metrics

LOST_AFTER_US = 30 * SECOND_US
"""How long the sessions of a lost replica still count."""

MAX_LEDGERS = 8
"""Ledgers whose reports of one dispatch are kept. More than one speak only after a lost disk."""

DEVICE_EVERY_US = 30 * SECOND_US
"""How often what is wrong with one device is shown anew: each time is a write to the API server."""

DEVICES_PER_SECOND = 20
"""How many devices are shown anew: the other writes are for what is ordered."""

SESSIONS_WITHIN_US = 5 * SECOND_US
"""How long after its snapshot a replica may take to tell its sessions."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedDispatch:
    """What is known of one dispatch, over all replicas."""

    holdings: tuple[Holding, ...] = ()
    complete: bool = False
    """All configured replicas are connected; without that nothing can be ruled out."""

    cancelled: bool = False
    """What ``accepted`` in the holdings speaks of is the cancelled order."""

    report: dispatch_pb2.DispatchReport | None = None
    received_us: int = 0
    disk_lost: bool = False
    """A new ledger has said that it does not know it: the one of ``report`` will say no more."""

    @property
    def written_us(self) -> int:
        """The first write to a live stream; 0 = none is known of."""
        return min((each.written_us for each in self.holdings if each.written_us), default=0)

    @property
    def lost_ledger_id(self) -> str:
        """The ledger that had it before the one that speaks of it and never applied it."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One gateway replica as the operator knows it."""

    name: str
    state_since_us: int
    connected: bool
    sent_version: int = 0
    accepted_version: int = 0
    changed_us: int = 0
    """When it was connected or lost."""

    synced_us: int = 0
    """When it accepted the snapshot of its connection; 0 = not yet."""


class Fleet:
    """The folded knowledge of all replicas. Not for several threads."""

    def __init__(self, start_us: int) -> None:
        self._start_us = start_us
        self.replicas: dict[str, Replica] = {}
        self.expected: int | None = None
        """How many replicas the configuration resolves to; None = that is not known."""

        self._sessions: dict[str, dict[str, control_pb2.Session]] = defaultdict(dict)
        self._deliveries: dict[str, dict[str, control_pb2.Delivery]] = defaultdict(dict)
        self._reports: dict[str, dict[str, control_pb2.AgentReport]] = defaultdict(dict)
        self._devices: dict[str, dict[str, control_pb2.DeviceState]] = defaultdict(dict)
        self._shown: dict[str, tuple[control_pb2.DeviceState, int]] = {}
        self._turns: dict[str, int] = {}
        """When newer facts of a device may be shown, where others are shown first."""

        self._next_turn_us = 0
        self._newest: dict[str, Rank] = {}
        self._holders = Holders()

    def add_replica(self, name: str, state_since_us: int, sent_version: int, now_us: int) -> None:
        """Note a replica's hello; its sessions follow, what it said before is over."""
        for sessions in self._sessions.values():
            sessions.pop(name, None)
        for deliveries in self._deliveries.values():
            deliveries.pop(name, None)
        for devices in self._devices.values():
            devices.pop(name, None)
        self.replicas[name] = Replica(
            name=name,
            state_since_us=state_since_us,
            connected=True,
            sent_version=sent_version,
            changed_us=now_us,
        )

    def lose_replica(self, name: str, now_us: int) -> None:
        """Note that the stream to a replica ended; what it may have done stays possible."""
        known = self.replicas[name]
        self.replicas[name] = replace(known, connected=False, changed_us=now_us)

    def note_sent(self, name: str, version: int) -> None:
        """Note that everything up to ``version`` may have reached the replica."""
        known = self.replicas[name]
        self.replicas[name] = replace(known, sent_version=max(version, known.sent_version))

    def note_accepted(self, name: str, version: int, now_us: int) -> None:
        """Note that the replica has stored everything up to ``version``."""
        known = self.replicas[name]
        self.replicas[name] = replace(
            known,
            accepted_version=max(version, known.accepted_version),
            synced_us=known.synced_us or now_us,
        )

    def note_session(
        self,
        name: str,
        session: control_pb2.Session,
        ledger: dispatch_pb2.IdentityLedger,
        now_us: int,
    ) -> control_pb2.EpochSeen | None:
        """Keep the state of an asset's stream at a replica.

        Returns:
            What the other replicas are to know of it, if that is new.
        """
        uid = session.asset_uid
        news = self._holders.merge(uid, session.instances, now_us)
        session.ClearField("instances")
        kept = self._sessions[uid][name] = control_pb2.Session()
        kept.CopyFrom(session)  # a part of a batch would keep all of it
        rank = Rank(session.epoch, session.serial_number, digest_of(session.instance_id))
        newest = self._newest.get(uid, Rank())
        if is_plausible_epoch(session.epoch, now_us) and outranks(rank, newest, ledger):
            newest = self._newest[uid] = rank
        elif not news:
            return None
        return _seen(uid, newest, news)

    def note_device(self, name: str, state: control_pb2.DeviceState) -> None:
        """Keep what an agent says of its device, as a replica tells it."""
        self._devices[state.asset_uid][name] = control_pb2.DeviceState(
            asset_uid=state.asset_uid,
            facts=bounded(state.facts),
            received_us=state.received_us,
        )

    def note_delivery(self, name: str, delivery: control_pb2.Delivery) -> None:
        """Keep where a replica stands with a dispatch."""
        self._deliveries[delivery.dispatch_uid][name] = delivery

    def note_report(self, message: control_pb2.AgentReport) -> bool:
        """Keep a report unless a later one of its ledger is known; tell whether it is new."""
        report = message.report
        ledgers = self._reports[report.dispatch_uid]
        known = ledgers.get(report.ledger_id)
        if known is not None and known.report.sequence >= report.sequence:
            return False
        ledgers[report.ledger_id] = message
        if len(ledgers) > MAX_LEDGERS:
            # What is furthest along is what is shown; of the others the newest are worth more.
            best = _fold_reports(list(ledgers.values()))
            others = [each for each in ledgers.values() if each is not best]
            oldest = min(others, key=lambda each: each.received_us)
            del ledgers[oldest.report.ledger_id]
            metrics.LEDGERS_FORGOTTEN.inc()
        return True

    def ledger_ids(self, dispatch_uid: str) -> set[str]:
        """Return the ledgers that gateways say they wrote a dispatch to."""
        deliveries = self._deliveries.get(dispatch_uid, {}).values()
        return {each.ledger_id for each in deliveries if each.ledger_id}

    def all_seen(self) -> list[control_pb2.EpochSeen]:
        """Return the newest stream of each asset, and who held it at any replica."""
        return [
            _seen(uid, self._newest.get(uid, Rank()), self._holders.messages(uid))
            for uid in self._newest.keys() | self._holders.uids()
        ]

    def forget(self, uid: str) -> None:
        """Forget an asset or a dispatch whose resource is gone."""
        self._sessions.pop(uid, None)
        self._devices.pop(uid, None)
        self._shown.pop(uid, None)
        self._turns.pop(uid, None)
        self._newest.pop(uid, None)
        self._holders.forget(uid)
        self._deliveries.pop(uid, None)
        self._reports.pop(uid, None)

    def known_uids(self) -> set[str]:
        """Return the uids of all assets and dispatches that anything is known of."""
        known = (
            self._sessions, self._devices, self._newest, self._deliveries, self._reports,
        )  # fmt: skip
        return self._holders.uids().union(*known)

    def accepted_version(self) -> int:
        """Return the highest version that a connected replica has stored."""
        return max(
            (each.accepted_version for each in self.replicas.values() if each.connected), default=0
        )

    def dispatch(
        self, uid: str, first_version: int, version: int, *, cancelled: bool = False
    ) -> ReportedDispatch:
        """Return what is known of a dispatch.

        Args:
            uid: Of the dispatch.
            first_version: The version with which it was first given to replicas.
            version: The version of its order as it is now.
            cancelled: Whether that order is a cancelled one.
        """
        deliveries = self._deliveries.get(uid, {})
        holdings = []
        for each in self.replicas.values():
            if not each.connected and each.sent_version < first_version:
                continue
            delivery = deliveries.get(each.name)
            holdings.append(
                Holding(
                    replica=each.name,
                    connected=each.connected,
                    state_since_us=each.state_since_us,
                    accepted=each.accepted_version >= version,
                    generation=delivery.generation if delivery else None,
                    written_us=delivery.written_us if delivery else 0,
                    ledger_id=delivery.ledger_id if delivery else "",
                )
            )
        connected = sum(each.connected for each in self.replicas.values())
        reports = list(self._reports.get(uid, {}).values())
        best = _fold_reports(reports)
        return ReportedDispatch(
            holdings=tuple(holdings),
            complete=self.expected is not None and connected >= self.expected > 0,
            cancelled=cancelled,
            report=best.report if best else None,
            received_us=best.received_us if best else 0,
            disk_lost=any(
                each.report.reason == Reason.LEDGER_LOST and each is not best for each in reports
            ),
        )

    def session(self, asset_uid: str, now_us: int) -> SessionView:
        """Return the stream of an asset: the connected one of the highest epoch."""
        best: tuple[bool, int, str] | None = None
        sessions = self._sessions.get(asset_uid, {})
        for name, session in sessions.items():
            rank = (session.connected, session.epoch, name)
            best = rank if best is None or rank > best else best
        if best is None:
            return SessionView(link=self._silence(now_us))
        session, replica = sessions[best[2]], self.replicas[best[2]]
        link = Connectivity.CONNECTED if session.connected else Connectivity.DISCONNECTED
        if not replica.connected and now_us >= replica.changed_us + LOST_AFTER_US:
            link = Connectivity.UNKNOWN
        device, again_us = None, None
        if link is Connectivity.CONNECTED:
            device, again_us = self._show_device(asset_uid, best[2], session.since_us, now_us)
        return SessionView(
            link=link,
            device=device,
            device_again_us=again_us,
            since_us=session.since_us,
            serial_number=session.serial_number if session.connected else "",
            end_reason=session.end_reason,
            capability=session.capability if session.HasField("capability") else None,
            suspected_us=max(_suspected_us(each) for each in sessions.values()),
        )

    def _show_device(
        self, asset_uid: str, replica: str, since_us: int, now_us: int
    ) -> tuple[agent_pb2.DeviceFacts | None, int | None]:
        """Return what to show of a device, and when there is something newer to show.

        What an earlier stream said is not shown, nor anything new too soon after what was shown, or
        after that of other devices.
        """
        newest = self._devices.get(asset_uid, {}).get(replica)
        if newest is None or newest.received_us < since_us:
            return None, None
        shown, shown_us = self._shown.get(asset_uid, (None, 0))
        if shown is not None and shown.facts == newest.facts:
            self._shown[asset_uid] = (newest, shown_us)
            return newest.facts, None
        if shown is not None and shown_us <= now_us:  # else a clock was set back
            again_us = shown_us + DEVICE_EVERY_US
            if now_us >= again_us:
                again_us = self._turns.get(asset_uid) or self._give_turn(asset_uid, now_us)
            if now_us < again_us:
                return (shown.facts if shown.received_us >= since_us else None), again_us
        self._turns.pop(asset_uid, None)
        self._shown[asset_uid] = (newest, now_us)
        return newest.facts, None

    def _give_turn(self, asset_uid: str, now_us: int) -> int:
        """Return when a device may be shown anew; all have one turn at most that is to come."""
        last_us = now_us + len(self._shown) * SECOND_US // DEVICES_PER_SECOND
        turn_us = max(now_us, min(self._next_turn_us, last_us))
        self._turns[asset_uid] = turn_us
        self._next_turn_us = turn_us + SECOND_US // DEVICES_PER_SECOND
        return turn_us

    def _silence(self, now_us: int) -> Connectivity:
        synced = [each.synced_us for each in self.replicas.values() if each.connected]
        if synced and all(synced) and now_us >= max(synced) + SESSIONS_WITHIN_US:
            return Connectivity.DISCONNECTED
        if not any(synced) and now_us >= self._start_us + LOST_AFTER_US:
            return Connectivity.UNKNOWN
        return Connectivity.UNHEARD


def _seen(
    asset_uid: str, newest: Rank, instances: list[control_pb2.Instance]
) -> control_pb2.EpochSeen:
    return control_pb2.EpochSeen(
        asset_uid=asset_uid,
        epoch=newest.epoch,
        serial_number=newest.serial_number,
        instance_id=newest.instance,
        instances=instances,
    )


def _suspected_us(session: control_pb2.Session) -> int:
    """Return when its replica last suspected a clone; an older one only says why it refused."""
    refused_us = session.since_us if session.end_reason == CLONE_SUSPECTED else 0
    return session.suspected_us or refused_us


def _fold_reports(messages: list[control_pb2.AgentReport]) -> control_pb2.AgentReport | None:
    """Return the report that is furthest along; of equal ones that of the ledger that accepted.

    Several ledgers speak of one dispatch only after a lost disk.
    """

    def rank(message: control_pb2.AgentReport) -> tuple[int, bool, bool, str]:
        report = message.report
        phase = Phase(report.phase) if report.phase else Phase.SUBMITTED
        return (phase.rank, report.applied_us > 0, report.accepted_us > 0, report.ledger_id)

    return max(messages, key=rank, default=None)
