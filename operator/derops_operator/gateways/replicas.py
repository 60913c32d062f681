"""What the gateway replicas say: sessions, deliveries and reports, folded.

Replicas come and go, and repeat themselves after each connection. Nothing here depends on the
order in which they speak.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

from derops.data_path import AssetFault
from derops.holders import Holders, Rank, digest_of, is_plausible_epoch, outranks
from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_operator import metrics
from derops_operator.gateways.devices import DeviceDisplay, Shown
from derops_operator.gateways.headend import HeadendViews
from derops_operator.gateways.views import (
    CLONE_SUSPECTED,
    LOST_AFTER_US,
    Connectivity,
    Holding,
    PathView,
    ReportedDispatch,
    SessionView,
)

MAX_LEDGERS = 8
"""Ledgers whose reports of one dispatch are kept. More than one speak only after a lost disk."""

SESSIONS_WITHIN_US = 5 * SECOND_US
"""How long after its snapshot a replica may take to tell its sessions."""


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
        self._start_us = self._served_us = start_us
        self.replicas: dict[str, Replica] = {}
        self.expected: int | None = None
        """How many replicas the configuration resolves to; None = that is not known."""

        self._sessions: dict[str, dict[str, control_pb2.Session]] = defaultdict(dict)
        self._deliveries: dict[str, dict[str, control_pb2.Delivery]] = defaultdict(dict)
        self._reports: dict[str, dict[str, control_pb2.AgentReport]] = defaultdict(dict)
        self._ledgers: dict[str, dict[str, int]] = defaultdict(dict)
        """When each ledger of an asset was first heard of."""

        self._devices = DeviceDisplay()
        self.headend = HeadendViews()
        """What each replica says of the links behind all agents."""
        self._stopped_us: dict[str, int] = {}
        """From when on the data of an asset was not known to flow; absent = it flows."""

        self._newest: dict[str, Rank] = {}
        self._holders = Holders()

    def add_replica(self, name: str, state_since_us: int, sent_version: int, now_us: int) -> None:
        """Note a replica's hello; its sessions follow, what it said before is over."""
        for sessions in self._sessions.values():
            sessions.pop(name, None)
        for deliveries in self._deliveries.values():
            deliveries.pop(name, None)
        self._devices.forget_replica(name)
        self.headend.forget_replica(name)
        self._note_served(name, now_us)
        self.replicas[name] = Replica(
            name=name,
            state_since_us=state_since_us,
            connected=True,
            sent_version=sent_version,
            changed_us=now_us,
        )

    def lose_replica(self, name: str, now_us: int) -> None:
        """Note that the stream to a replica ended; what it may have done stays possible."""
        self._note_served(name, now_us)
        self.replicas[name] = replace(self.replicas[name], connected=False, changed_us=now_us)

    def _note_served(self, name: str, now_us: int) -> None:
        """Note that until now a stream told all that its replica knew."""
        known = self.replicas.get(name)
        if known is not None and known.connected and known.synced_us:
            self._served_us = now_us

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
        """Keep what is told of an asset's device and data path, as a replica tells it."""
        self._devices.note(name, state)

    def note_delivery(self, name: str, delivery: control_pb2.Delivery) -> None:
        """Keep where a replica stands with a dispatch."""
        self._deliveries[delivery.dispatch_uid][name] = delivery

    def note_report(self, message: control_pb2.AgentReport) -> bool:
        """Keep a report unless a later one of its ledger is known; tell whether it is new."""
        report = message.report
        self._note_ledger(message)
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

    def _note_ledger(self, message: control_pb2.AgentReport) -> None:
        heard = self._ledgers[message.asset_uid]
        ledger_id, received_us = message.report.ledger_id, message.received_us
        heard[ledger_id] = min(received_us, heard.get(ledger_id, received_us))
        if len(heard) > MAX_LEDGERS:
            del heard[min(heard, key=lambda each: heard[each])]

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
        self._devices.forget(uid)
        self._stopped_us.pop(uid, None)
        self._newest.pop(uid, None)
        self._holders.forget(uid)
        self._deliveries.pop(uid, None)
        self._reports.pop(uid, None)
        self._ledgers.pop(uid, None)

    def known_uids(self) -> set[str]:
        """Return the uids of all assets and dispatches that anything is known of."""
        known = (
            self._sessions,
            self._newest,
            self._deliveries,
            self._reports,
            self._ledgers,
        )
        return self._holders.uids().union(self._devices.uids(), *known)

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
        connected = sum(each.connected for each in self.replicas.values())
        reports = list(self._reports.get(uid, {}).values())
        best = _fold_reports(reports)
        return ReportedDispatch(
            holdings=tuple(
                _holding(each, deliveries.get(each.name), version)
                for each in self.replicas.values()
                if each.connected or each.sent_version >= first_version
            ),
            complete=self.expected is not None and connected >= self.expected > 0,
            cancelled=cancelled,
            report=best.report if best else None,
            received_us=best.received_us if best else 0,
            ledger_since_us=self._ledger_since_us(best),
            strangers_until_us=self._strangers_until_us(),
            disk_lost=any(
                each.report.reason == Reason.LEDGER_LOST and each is not best for each in reports
            ),
        )

    def _ledger_since_us(self, message: control_pb2.AgentReport | None) -> int | None:
        """Return when the ledger of a report was first heard of, of whatever dispatch."""
        if message is None:
            return None
        return self._ledgers.get(message.asset_uid, {}).get(message.report.ledger_id)

    def _strangers_until_us(self) -> int:
        """Return until when what was created may be held by a replica that was never heard."""
        heard_all = self.expected is not None and len(self.replicas) >= self.expected > 0
        return 0 if heard_all else self._start_us

    def session(self, asset_uid: str, now_us: int) -> SessionView:
        """Return the stream of an asset: the connected one of the highest epoch."""
        view = self._stream(asset_uid, now_us)
        if view.link is Connectivity.UNHEARD:
            return view
        if view.path is not None and view.path.fault is None:
            self._stopped_us.pop(asset_uid, None)
            return view
        return replace(view, stopped_us=self._stopped_us.setdefault(asset_uid, now_us))

    def _stream(self, asset_uid: str, now_us: int) -> SessionView:
        sessions = self._sessions.get(asset_uid, {})
        if not sessions:
            return SessionView(link=self._silence(now_us))
        _, _, name = max((each.connected, each.epoch, name) for name, each in sessions.items())
        session, replica = sessions[name], self.replicas[name]
        link = Connectivity.CONNECTED if session.connected else Connectivity.DISCONNECTED
        if not replica.connected and now_us >= replica.changed_us + LOST_AFTER_US:
            link = Connectivity.UNKNOWN
        shown, again_us = None, None
        if link is Connectivity.CONNECTED:
            shown, again_us = self._devices.show(asset_uid, name, session.since_us, now_us)
        return SessionView(
            link=link,
            device=_facts(shown),
            device_again_us=again_us,
            path=_path(shown),
            asked_us=max(session.since_us, replica.changed_us, replica.synced_us),
            since_us=session.since_us,
            serial_number=session.serial_number if session.connected else "",
            end_reason=session.end_reason,
            capability=session.capability if session.HasField("capability") else None,
            suspected_us=max(_suspected_us(each) for each in sessions.values()),
        )

    def _silence(self, now_us: int) -> Connectivity:
        synced = [each.synced_us for each in self.replicas.values() if each.connected]
        if synced and all(synced) and now_us >= max(synced) + SESSIONS_WITHIN_US:
            return Connectivity.DISCONNECTED
        if not any(synced) and now_us >= self._served_us + LOST_AFTER_US:
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


def _facts(shown: Shown | None) -> agent_pb2.DeviceFacts | None:
    if shown is None or not shown.state.HasField("facts"):
        return None
    return shown.state.facts


def _path(shown: Shown | None) -> PathView | None:
    if shown is None or not shown.state.HasField("path"):
        return None
    path = shown.state.path
    return PathView(
        fault=AssetFault(path.reason) if path.reason else None,
        message=path.message,
        shown_us=shown.judged_us,
    )


def _holding(replica: Replica, delivery: control_pb2.Delivery | None, version: int) -> Holding:
    """Return where a replica stands with a dispatch; ``version`` is that of its order."""
    return Holding(
        replica=replica.name,
        connected=replica.connected,
        state_since_us=replica.state_since_us,
        accepted=replica.accepted_version >= version,
        generation=delivery.generation if delivery is not None else None,
        written_us=delivery.written_us if delivery is not None else 0,
        ledger_id=delivery.ledger_id if delivery is not None else "",
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
