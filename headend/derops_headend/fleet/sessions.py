"""Who is connected: one live session for each asset, and no identity twice. Pure.

The stream with the ledger's newest key is the live one; of streams with one key, the one with the
highest epoch. The agent raises the epoch with each connection, so the highest is the newest,
whichever replica saw it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from derops.errors import DeropsError
from derops.holders import (
    MAX_EPOCH_AHEAD_MS,
    Holder,
    Holders,
    Rank,
    digest_of,
    is_older_key,
    is_over,
    is_plausible_epoch,
    message_of,
    outranks,
)
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2

MAX_EPOCH = 2**63 - 1
"""Signed 64 bit, as agents and databases store it."""

MAX_TAKEOVERS = 3
"""How often a living stream may be replaced by another instance's within the time below."""

TAKEOVERS_WITHIN_US = 600 * SECOND_US

_STAMP_US = 1000
"""The steps in which a status can say an instant."""


class OutOfOrderError(DeropsError):
    """A stream that may not take over; its agent may try again."""

    reason = ""


class EpochTooLowError(OutOfOrderError):
    """A stream with a newer epoch is known; the agent may exceed it once."""

    reason = "EpochTooLow"

    def __init__(self, highest: int) -> None:
        super().__init__(f"highest known epoch is {highest}")
        self.highest = highest


class EpochTooHighError(OutOfOrderError):
    """An epoch from the future, which nobody could exceed; the agent is to begin at the floor."""

    reason = "EpochTooHigh"

    def __init__(self, floor: int) -> None:
        super().__init__(
            f"floor {floor}: the epoch is more than {MAX_EPOCH_AHEAD_MS // 1000} s ahead of the "
            f"gateway's clock"
        )
        self.floor = floor


class CertificateSupersededError(OutOfOrderError):
    """A newer key of the asset has had a stream; a mounted certificate may be late."""

    reason = "CertificateSuperseded"

    def __init__(self, serial_number: str) -> None:
        super().__init__(f"a certificate newer than {serial_number} is in use")


class CloneSuspectedError(DeropsError):
    """Two processes use the identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The state of one asset's stream."""

    asset_uid: str
    epoch: int
    instance_id: str
    serial_number: str
    opened_us: int
    """When its call began, which is before its Hello."""

    since_us: int
    capability: agent_pb2.Capability
    connected: bool = True
    end_reason: str = ""

    @property
    def rank(self) -> Rank:
        """The rank by which sessions are ordered."""
        return Rank(self.epoch, self.serial_number, digest_of(self.instance_id))


@dataclass(slots=True)
class _AssetStreams:
    """What is known of one asset's streams."""

    last: Session | None = None
    newest: Rank = field(default_factory=Rank)
    """The highest rank at any replica."""

    suspected_us: int = 0


class SessionTable:
    """The last session of each asset at this replica, and what is known of all replicas."""

    def __init__(self, on_forgotten: Callable[[], object] = lambda: None) -> None:
        self._known: dict[str, _AssetStreams] = {}
        self._holders = Holders(on_forgotten)

    def last(self, asset_uid: str) -> Session | None:
        """Return the live or last session of an asset."""
        known = self._known.get(asset_uid)
        return known.last if known is not None else None

    def suspected_us(self, asset_uid: str) -> int:
        """Return when a clone of the asset was last suspected here; 0 = never."""
        known = self._known.get(asset_uid)
        return known.suspected_us if known is not None else 0

    def open(
        self,
        session: Session,
        ledger: dispatch_pb2.IdentityLedger,
        now_us: int,
        *,
        alive: bool = False,
    ) -> list[control_pb2.Instance]:
        """Make ``session`` the live one of its asset; return the instances that this changes.

        Args:
            session: The stream that said Hello.
            ledger: The identity of its asset, which knows its certificate.
            now_us: The time.
            alive: Whether the agent of the stream that it would replace was heard of lately, and
                neither side has ended that stream.

        Raises:
            CloneSuspectedError: Its instance was here before another took over, or too many took
                over from each other while they lived.
            OutOfOrderError: Its epoch or its key does not let it take over.
        """
        known = self._known.setdefault(session.asset_uid, _AssetStreams())
        self._check_return(session, known, ledger, now_us)
        if not is_plausible_epoch(known.newest.epoch, now_us):  # the clock was set back
            known.newest = known.newest._replace(epoch=0)
        if not is_plausible_epoch(session.epoch, now_us):
            raise EpochTooHighError(max(known.newest.epoch, now_us // 1000))
        if is_older_key(session.rank, known.newest, ledger):
            raise CertificateSupersededError(session.serial_number)
        if not outranks(session.rank, known.newest, ledger):
            raise EpochTooLowError(known.newest.epoch)
        self._check_takeovers(session, known, ledger, now_us, alive=alive)
        known.newest = session.rank
        touched = self._hand_over(session, known, ledger, now_us, alive=alive)
        known.last = session
        return touched

    def close(self, session: Session, reason: str, now_us: int) -> Session | None:
        """Note the end of a session; return it, or None where it is not the last one."""
        known = self._known.get(session.asset_uid)
        if known is None or known.last is not session:
            return None
        known.last = replace(session, connected=False, end_reason=reason, since_us=now_us)
        return known.last

    def suspect(
        self, session: Session, ledger: dispatch_pb2.IdentityLedger, now_us: int
    ) -> Session:
        """Note that ``session`` was refused as a clone; return what the operator is told.

        The instant of the suspicion is after all that led to it, whichever clocks those were.
        """
        known = self._known.setdefault(session.asset_uid, _AssetStreams())
        holders = self._holders.of(session.asset_uid).values()
        latest = max((max(each.opened_us, each.replaced_us) for each in holders), default=0)
        latest = max(latest, now_us, ledger.suspected_us, known.suspected_us)
        known.suspected_us = (latest // _STAMP_US + 1) * _STAMP_US
        known.last = replace(session, connected=False, end_reason="CloneSuspected", since_us=now_us)
        return known.last

    def see(
        self, seen: control_pb2.EpochSeen, ledger: dispatch_pb2.IdentityLedger, now_us: int
    ) -> bool:
        """Take what the operator knows of all replicas; tell whether the session here is over."""
        uid = seen.asset_uid
        known = self._known.setdefault(uid, _AssetStreams())
        self._holders.merge(uid, seen.instances, now_us)
        rank = Rank(seen.epoch, seen.serial_number, seen.instance_id)
        if not is_plausible_epoch(seen.epoch, now_us):
            return False
        if outranks(rank, known.newest, ledger):
            known.newest = rank
        session = known.last
        return session is not None and session.connected and outranks(rank, session.rank, ledger)

    def yield_to(
        self,
        seen: control_pb2.EpochSeen,
        ledger: dispatch_pb2.IdentityLedger,
        now_us: int,
        *,
        alive: bool,
    ) -> list[control_pb2.Instance]:
        """Note that a session at another replica took the place of the one here.

        Returns:
            The instances that this changes; none, if the instance here went there itself.
        """
        uid, successor = seen.asset_uid, seen.instance_id
        session, holders = self.last(uid), self._holders.of(uid)
        here = digest_of(session.instance_id) if session is not None else ""
        if here not in holders or here == successor or successor not in holders:
            return []
        if holders[successor].opened_us < holders[here].opened_us:
            return []  # it outranks, and did not come after: a ledger was lost, or a clock set back
        at_us = max(holders[successor].opened_us, ledger.suspected_us + 1)
        return [self._replaced(uid, here, at_us, now_us, alive=alive)]

    def everything(self, asset_uid: str) -> control_pb2.Session:
        """Return what the operator is told of an asset after a snapshot."""
        message = self.memory(asset_uid)
        self._describe(message)
        return message

    def change(
        self, asset_uid: str, changed: Iterable[control_pb2.Instance], now_us: int
    ) -> control_pb2.Session:
        """Return what the operator is told of an asset that changed.

        It may take the place of an earlier change that still waits, so it names the foremost
        holders again.
        """
        instances = [*changed, *self._holders.foremost(asset_uid, now_us)]
        message = control_pb2.Session(
            asset_uid=asset_uid, suspected_us=self.suspected_us(asset_uid), instances=instances
        )
        self._describe(message)
        return message

    def _describe(self, message: control_pb2.Session) -> None:
        last = self.last(message.asset_uid)
        if last is None:
            return
        message.connected = last.connected
        message.epoch = last.epoch
        message.since_us = last.since_us
        message.serial_number = last.serial_number
        message.instance_id = last.instance_id
        message.end_reason = last.end_reason
        message.capability.CopyFrom(last.capability)

    def memory(self, asset_uid: str) -> control_pb2.Session:
        """Return what is to outlive the process: who held the stream, and a suspicion."""
        return control_pb2.Session(
            asset_uid=asset_uid,
            suspected_us=self.suspected_us(asset_uid),
            instances=self._holders.messages(asset_uid),
        )

    def restore(self, memory: control_pb2.Session, now_us: int) -> None:
        """Begin with what was remembered."""
        self._holders.merge(memory.asset_uid, memory.instances, now_us)
        self._known.setdefault(memory.asset_uid, _AssetStreams()).suspected_us = memory.suspected_us

    def forget(self, asset_uid: str) -> None:
        """Drop an asset that is gone; its uid never comes back."""
        self._known.pop(asset_uid, None)
        self._holders.forget(asset_uid)

    def _check_return(
        self,
        session: Session,
        known: _AssetStreams,
        ledger: dispatch_pb2.IdentityLedger,
        now_us: int,
    ) -> None:
        mine = self._holders.of(session.asset_uid).get(digest_of(session.instance_id))
        if mine is None or is_over(mine, now_us) or mine.replaced_us <= ledger.suspected_us:
            return
        if max(session.opened_us, ledger.suspected_us + 1) < mine.replaced_us:
            raise EpochTooLowError(known.newest.epoch)  # merely late: it began before its successor
        raise CloneSuspectedError(
            # The id itself would tell one process how to pass for the other.
            f"instance {digest_of(session.instance_id)} came back after another took over"
        )

    def _check_takeovers(
        self,
        session: Session,
        known: _AssetStreams,
        ledger: dispatch_pb2.IdentityLedger,
        now_us: int,
        *,
        alive: bool,
    ) -> None:
        last = known.last
        if not alive or last is None or last.instance_id == session.instance_id:
            return
        since_us = max(ledger.suspected_us, now_us - TAKEOVERS_WITHIN_US)
        holders = self._holders.of(session.asset_uid).values()
        count = sum(each.alive and each.replaced_us > since_us for each in holders)
        if count >= MAX_TAKEOVERS:
            raise CloneSuspectedError(
                f"more than {MAX_TAKEOVERS} instances took over from living ones within "
                f"{TAKEOVERS_WITHIN_US // SECOND_US} s"
            )

    def _hand_over(
        self,
        session: Session,
        known: _AssetStreams,
        ledger: dispatch_pb2.IdentityLedger,
        now_us: int,
        *,
        alive: bool,
    ) -> list[control_pb2.Instance]:
        """Note who holds the stream now, and that all others were replaced."""
        uid, mine = session.asset_uid, digest_of(session.instance_id)
        here = digest_of(known.last.instance_id) if known.last is not None else ""
        at_us = max(session.opened_us, ledger.suspected_us + 1)
        before = self._holders.of(uid)
        unreplaced = [each for each in before if each != mine and _is_current(before[each], ledger)]
        touched = [
            self._replaced(uid, each, at_us, now_us, alive=alive and each == here)
            for each in unreplaced
        ]
        since_us = before[mine].since_us if mine in before else at_us
        holder = Holder(min(since_us, at_us), at_us)
        self._holders.put(uid, mine, holder, now_us)
        return [*touched, message_of(mine, holder)]

    def _replaced(
        self, asset_uid: str, digest: str, at_us: int, now_us: int, *, alive: bool
    ) -> control_pb2.Instance:
        holder = self._holders.of(asset_uid)[digest]._replace(replaced_us=at_us, alive=alive)
        self._holders.put(asset_uid, digest, holder, now_us)
        return message_of(digest, holder)


def _is_current(holder: Holder, ledger: dispatch_pb2.IdentityLedger) -> bool:
    """Tell whether nobody took over since it came last: it may have come back after a lift.

    Other replicas, and the operator, still tell of a replacement before that.
    """
    return holder.replaced_us == 0 or holder.replaced_us <= ledger.suspected_us < holder.opened_us
