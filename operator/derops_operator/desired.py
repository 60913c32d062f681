"""The desired state of all gateways: a snapshot and numbered changes, each replica told alike."""

import asyncio
from collections import deque
from typing import NamedTuple

from derops.wire.v1 import control_pb2, dispatch_pb2

BACKLOG_LIMIT = 50_000
"""Changes that wait for one replica; beyond that a new snapshot is cheaper."""


class _Held(NamedTuple):
    message: dispatch_pb2.Dispatch
    first_version: int
    version: int


class Subscription:
    """The messages for one replica, in order."""

    def __init__(self, messages: list[control_pb2.OperatorMessage]) -> None:
        self._waiting = deque(messages)
        self._some = asyncio.Event()
        self._some.set()
        self.overrun = False
        """The replica is too slow: end its stream, the next snapshot brings it up to date."""

    def put(self, message: control_pb2.OperatorMessage) -> None:
        """Add a message at the end."""
        self.overrun = self.overrun or len(self._waiting) >= BACKLOG_LIMIT
        if not self.overrun:
            self._waiting.append(message)
        self._some.set()

    async def get(self) -> control_pb2.OperatorMessage | None:
        """Wait for the next message; None ends the stream."""
        while not self._waiting and not self.overrun:
            self._some.clear()
            await self._some.wait()
        return None if self.overrun else self._waiting.popleft()


class Desired:
    """What every replica is to hold. Each change raises the version by one; equal state does not.

    A cancelled dispatch stays cancelled: gateways and agents are told so once, and nobody may build
    a proof on an order that can come back.
    """

    def __init__(self, operator_start_ms: int) -> None:
        self.operator_start_ms = operator_start_ms
        self.version = 1
        self._assets: dict[str, tuple[dispatch_pb2.Asset, int]] = {}
        self._dispatches: dict[str, _Held] = {}
        self._subscriptions: list[Subscription] = []

    def put_asset(self, message: dispatch_pb2.Asset) -> None:
        """Hold an asset as it is now."""
        uid = message.id.uid
        if uid in self._assets and self._assets[uid][0] == message:
            return
        version = self._publish(control_pb2.OperatorMessage(asset=message))
        self._assets[uid] = (message, version)

    def put_dispatch(self, message: dispatch_pb2.Dispatch) -> None:
        """Hold a dispatch as it is now."""
        known = self._dispatches.get(message.uid)
        if known is not None and known.message.cancelled:
            message.cancelled = True
            message.cancel_reason = known.message.cancel_reason
        if known is not None and known.message == message:
            return
        version = self._publish(control_pb2.OperatorMessage(dispatch=message))
        first = known.first_version if known is not None else version
        self._dispatches[message.uid] = _Held(message, first, version)

    def remove_asset(self, uid: str) -> None:
        """Let go of an asset: its agent may not connect any more."""
        if self._assets.pop(uid, None) is not None:
            self._publish(control_pb2.OperatorMessage(asset_removed=uid))

    def remove_dispatch(self, uid: str) -> None:
        """Let go of a dispatch: it is settled."""
        if self._dispatches.pop(uid, None) is not None:
            self._publish(control_pb2.OperatorMessage(dispatch_removed=uid))

    def has_asset(self, uid: str) -> bool:
        """Tell whether the asset is held."""
        return uid in self._assets

    def asset_uid_of(self, dispatch_uid: str) -> str | None:
        """Return the asset that a held dispatch was given for."""
        held = self._dispatches.get(dispatch_uid)
        return held.message.asset_uid if held else None

    def asset_version(self, uid: str, generation: int) -> int | None:
        """Return the version that brought this generation of an asset; None = not held."""
        held = self._assets.get(uid)
        return held[1] if held is not None and held[0].generation >= generation else None

    def dispatch_versions(self, uid: str) -> tuple[int, int]:
        """Return the versions that brought a dispatch first and as it is now.

        One that is not held has versions that no replica can have accepted.
        """
        held = self._dispatches.get(uid)
        return (held.first_version, held.version) if held else (self.version, self.version + 1)

    def is_cancelled(self, uid: str) -> bool:
        """Tell whether a dispatch is held as a cancelled one."""
        held = self._dispatches.get(uid)
        return held is not None and held.message.cancelled

    def subscribe(self) -> Subscription:
        """Return a snapshot, then all changes, for one replica."""
        message, version = control_pb2.OperatorMessage, self.version
        begin = control_pb2.SnapshotBegin(operator_start_ms=self.operator_start_ms)
        end = control_pb2.SnapshotEnd(assets=len(self._assets), dispatches=len(self._dispatches))
        subscription = Subscription(
            [
                message(version=version, snapshot_begin=begin),
                *(message(version=version, asset=held[0]) for held in self._assets.values()),
                *(
                    message(version=version, dispatch=held.message)
                    for held in self._dispatches.values()
                ),
                message(version=version, snapshot_end=end),
            ]
        )
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop the changes for one replica."""
        self._subscriptions.remove(subscription)

    def tell(self, message: control_pb2.OperatorMessage, to: Subscription | None = None) -> None:
        """Send what changes no state, to one replica or to all; it has the version of the state."""
        message.version = self.version
        for subscription in [to] if to is not None else self._subscriptions:
            subscription.put(message)

    def tell_any(self, message: control_pb2.OperatorMessage) -> bool:
        """Send what one replica is enough for; False where there is none."""
        if not self._subscriptions:
            return False
        self.tell(message, to=self._subscriptions[0])
        return True

    def _publish(self, message: control_pb2.OperatorMessage) -> int:
        self.version += 1
        message.version = self.version
        for subscription in self._subscriptions:
            subscription.put(message)
        return self.version
