"""Who is connected: one live session for each asset, ordered by epoch. Pure.

The agent chooses the epoch of each connection, so the highest is the newest wherever it was seen.
"""

from dataclasses import dataclass, replace

from derops.errors import DeropsError
from derops.wire.v1 import agent_pb2, control_pb2

MAX_EPOCH = 2**63 - 1
"""Signed 64 bit, as agents and databases store it."""

_REMEMBERED_INSTANCES = 16


class EpochTooLowError(DeropsError):
    """A stream with a newer epoch is known; the agent may exceed it once."""

    def __init__(self, highest: int) -> None:
        super().__init__(f"highest known epoch is {highest}")
        self.highest = highest


class CloneSuspectedError(DeropsError):
    """An instance came back after another had taken over: the identity is used twice."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(
            f"instance {instance_id[:64]!r} came back after another instance took over"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The state of one asset's stream."""

    asset_uid: str
    epoch: int
    instance_id: str
    serial_number: str
    since_us: int
    capability: agent_pb2.Capability
    connected: bool = True
    end_reason: str = ""

    def to_message(self) -> control_pb2.Session:
        """Return it as the operator is told."""
        return control_pb2.Session(
            asset_uid=self.asset_uid,
            connected=self.connected,
            epoch=self.epoch,
            since_us=self.since_us,
            serial_number=self.serial_number,
            instance_id=self.instance_id,
            capability=self.capability,
            end_reason=self.end_reason,
        )


class SessionTable:
    """The last session of each asset at this replica, and the highest epoch at any."""

    def __init__(self) -> None:
        self._last: dict[str, Session] = {}
        self._highest: dict[str, int] = {}
        self._instances: dict[str, list[str]] = {}

    def last(self, asset_uid: str) -> Session | None:
        """Return the live or last session of an asset."""
        return self._last.get(asset_uid)

    def live_count(self) -> int:
        """Return how many are connected."""
        return sum(session.connected for session in self._last.values())

    def open(self, session: Session) -> None:
        """Make ``session`` the live one of its asset, in the place of any other.

        Raises:
            EpochTooLowError: A newer one is known.
            CloneSuspectedError: Its instance was here before another took over.
        """
        uid = session.asset_uid
        highest = self._highest.get(uid, 0)
        if session.epoch <= highest:
            raise EpochTooLowError(highest)
        instances = self._instances.setdefault(uid, [])
        if session.instance_id in instances[:-1]:
            raise CloneSuspectedError(session.instance_id)
        if session.instance_id not in instances:
            instances.append(session.instance_id)
            del instances[:-_REMEMBERED_INSTANCES]
        self._highest[uid] = session.epoch
        self._last[uid] = session

    def close(self, asset_uid: str, epoch: int, reason: str, now_us: int) -> Session | None:
        """Note the end of a session; return it, or None where it is not the last one."""
        session = self._last.get(asset_uid)
        if session is None or session.epoch != epoch or not session.connected:
            return None
        ended = replace(session, connected=False, end_reason=reason, since_us=now_us)
        self._last[asset_uid] = ended
        return ended

    def suspect(self, session: Session, now_us: int) -> Session:
        """Note that ``session`` was refused as a clone; it is what the operator is told."""
        ended = replace(session, connected=False, end_reason="CloneSuspected", since_us=now_us)
        self._highest[session.asset_uid] = session.epoch
        self._last[session.asset_uid] = ended
        return ended

    def see(self, asset_uid: str, epoch: int) -> bool:
        """Note an epoch seen elsewhere; tell whether it ends the live session here."""
        self._highest[asset_uid] = max(self._highest.get(asset_uid, 0), epoch)
        session = self._last.get(asset_uid)
        return session is not None and session.connected and session.epoch < epoch

    def forget(self, asset_uid: str) -> None:
        """Drop an asset that is gone; its uid never comes back."""
        for table in (self._last, self._highest, self._instances):
            table.pop(asset_uid, None)
