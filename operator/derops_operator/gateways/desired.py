"""The desired state of all gateways: a snapshot and numbered changes, each replica told alike."""

import asyncio
import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from derops.wire.v1 import control_pb2, dispatch_pb2

BACKLOG_BYTES = 64 * 1024**2
"""Of changes that wait for one replica; beyond that a new snapshot is cheaper."""

OVERHEAD_BYTES = 1024
"""What a message costs beside its bytes."""

_STALE_ENTRIES = 1000


class _HeldAsset(NamedTuple):
    encoded: bytes
    """The message in a tenth of its memory; an asset seldom changes."""

    generation: int
    version: int


class _HeldUnread(NamedTuple):
    message: control_pb2.Unread
    first_version: int


class _HeldDispatch(NamedTuple):
    message: dispatch_pb2.Dispatch
    first_version: int
    version: int


Waiter = TypeVar("Waiter", bound=Hashable)


class Awaiting(Generic[Waiter]):
    """Who waits until a version of the desired state is stored somewhere."""

    def __init__(self) -> None:
        self._versions: dict[Waiter, int] = {}
        self._heap: list[tuple[int, int, Waiter]] = []
        self._count = 0

    def add(self, waiter: Waiter, version: int) -> None:
        """Wait for ``version`` and for no other."""
        if self._versions.get(waiter) != version:
            self._versions[waiter] = version
            self._count += 1
            heapq.heappush(self._heap, (version, self._count, waiter))
        if len(self._heap) > 2 * len(self._versions) + _STALE_ENTRIES:
            self._heap = [each for each in self._heap if self._versions.get(each[2]) == each[0]]
            heapq.heapify(self._heap)

    def discard(self, waiter: Waiter) -> None:
        """Wait no more."""
        self._versions.pop(waiter, None)

    def take_until(self, version: int) -> Iterator[Waiter]:
        """Yield all who wait for ``version`` or an earlier one; they wait no more."""
        while self._heap and self._heap[0][0] <= version:
            awaited, _, waiter = heapq.heappop(self._heap)
            if self._versions.get(waiter) == awaited:
                del self._versions[waiter]
                yield waiter


class Subscription:
    """The messages for one replica, in order: a snapshot, then what is put."""

    def __init__(self, snapshot: Iterator[control_pb2.OperatorMessage]) -> None:
        self._snapshot = snapshot
        self._waiting: deque[control_pb2.OperatorMessage] = deque()
        self._some = asyncio.Event()
        self.bytes = 0
        """What waits."""

        self.overrun = asyncio.Event()
        """The replica is too slow: end its stream, the next snapshot brings it up to date."""

        self.stored = False
        """Whether the replica has stored the snapshot: one that is refused brings nothing on."""

        self.most = 1
        """How many messages are taken at once; may be raised while one waits for them."""

    def put(self, message: control_pb2.OperatorMessage) -> None:
        """Add a message at the end."""
        self._waiting.append(message)
        self.bytes += message.ByteSize() + OVERHEAD_BYTES
        if self.overrun.is_set() or self.bytes > BACKLOG_BYTES:
            # The stream ends now; what the next snapshot does not bring goes to another one.
            self._waiting = deque(each for each in self._waiting if each.HasField("transition"))
            self.bytes = 0
            self.overrun.set()
        self._some.set()

    async def get(self) -> list[control_pb2.OperatorMessage]:
        """Wait for the next messages, up to ``most``; none ends the stream."""
        while not (messages := self.take()) and not self.overrun.is_set():
            self._some.clear()
            await self._some.wait()
        return messages

    def take(self) -> list[control_pb2.OperatorMessage]:
        """Return the next messages that are there, up to ``most``."""
        if self.overrun.is_set():
            return []
        if snapshot := list(islice(self._snapshot, self.most)):
            return snapshot
        taken = [self._waiting.popleft() for _ in range(min(self.most, len(self._waiting)))]
        self.bytes -= sum(message.ByteSize() + OVERHEAD_BYTES for message in taken)
        return taken

    def take_transitions(self) -> list[control_pb2.HeadendTransition]:
        """Return what no snapshot brings again, and let go of everything."""
        found = [each.transition for each in self._waiting if each.HasField("transition")]
        self._waiting.clear()
        self.bytes = 0
        return found


class Desired:
    """What every replica is to hold. Each change raises the version by one; equal state does not.

    A cancelled dispatch stays cancelled: gateways and agents are told so once, and nobody may build
    a proof on an order that can come back. The request id that came first stands: it is an
    annotation, and whoever changes that sends nothing anew.
    """

    def __init__(self, operator_start_ms: int, era: int = 0) -> None:
        self.operator_start_ms, self.era = operator_start_ms, era
        self.version = 1
        self._assets: dict[str, _HeldAsset] = {}
        self._dispatches: dict[str, _HeldDispatch] = {}
        self._unread: dict[str, _HeldUnread] = {}
        self._subscriptions: list[Subscription] = []

    def put_asset(self, message: dispatch_pb2.Asset) -> None:
        """Hold an asset as it is now."""
        encoded = message.SerializeToString(deterministic=True)
        known = self._assets.get(message.id.uid)
        if known is not None and known.encoded == encoded:
            return
        version = self._publish(control_pb2.OperatorMessage(asset=message))
        self._unread.pop(message.id.uid, None)
        self._assets[message.id.uid] = _HeldAsset(encoded, message.generation, version)

    def put_dispatch(self, message: dispatch_pb2.Dispatch) -> None:
        """Hold a dispatch as it is now."""
        known = self._dispatches.get(message.uid)
        if known is not None and known.message.cancelled:
            message.cancelled = True
            message.cancel_reason = known.message.cancel_reason
        if known is not None:
            message.request_id = known.message.request_id
        if known is not None and known.message == message:
            return
        version = self._publish(control_pb2.OperatorMessage(dispatch=message))
        earlier = known or self._unread.pop(message.uid, None)
        first = earlier.first_version if earlier is not None else version
        self._dispatches[message.uid] = _HeldDispatch(message, first, version)

    def put_unread(self, message: control_pb2.Unread) -> None:
        """Have replicas keep what they hold under this uid; what is held here stands."""
        if message.uid not in self._assets and message.uid not in self._dispatches:
            version = self._publish(control_pb2.OperatorMessage(unread=message))
            self._unread[message.uid] = _HeldUnread(message, version)

    def settle_unread(self, dispatch_uid: str) -> None:
        """Say that a dispatch was read at last, and that nobody is to hold it."""
        if dispatch_uid in self._unread:
            self.remove_dispatch(dispatch_uid)

    def remove_asset(self, uid: str) -> None:
        """Let go of an asset: its agent may not connect any more."""
        if self._unread.pop(uid, None) or self._assets.pop(uid, None):
            self._publish(control_pb2.OperatorMessage(asset_removed=uid))

    def remove_dispatch(self, uid: str) -> None:
        """Let go of a dispatch: it is settled."""
        if self._unread.pop(uid, None) or self._dispatches.pop(uid, None):
            self._publish(control_pb2.OperatorMessage(dispatch_removed=uid))

    def has_asset(self, uid: str) -> bool:
        """Tell whether the asset is held."""
        return uid in self._assets

    def ledger_of(self, asset_uid: str) -> dispatch_pb2.IdentityLedger:
        """Return the identity of an asset as the gateways know it; empty = not held."""
        held = self._assets.get(asset_uid)
        if held is None:
            return dispatch_pb2.IdentityLedger()
        return dispatch_pb2.Asset.FromString(held.encoded).identity

    def asset_uid_of(self, dispatch_uid: str) -> str | None:
        """Return the asset that a held dispatch was given for."""
        held = self._dispatches.get(dispatch_uid)
        return held.message.asset_uid if held else None

    def asset_version(self, uid: str, generation: int) -> int | None:
        """Return the version that brought this generation of an asset; None = not held."""
        held = self._assets.get(uid)
        return held.version if held is not None and held.generation >= generation else None

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
        snapshot = self._snapshot(
            self.version,
            list(self._assets.values()),
            list(self._dispatches.values()),
            [each.message for each in self._unread.values()],
        )
        subscription = Subscription(snapshot)
        self._subscriptions.append(subscription)
        return subscription

    def _snapshot(
        self,
        version: int,
        assets: list[_HeldAsset],
        dispatches: list[_HeldDispatch],
        unread: list[control_pb2.Unread],
    ) -> Iterator[control_pb2.OperatorMessage]:
        """Yield what was held at ``version``; each message is made when it is sent."""
        message = control_pb2.OperatorMessage
        begin = control_pb2.SnapshotBegin(
            operator_start_ms=self.operator_start_ms, takes_batches=True, era=self.era
        )
        yield message(version=version, snapshot_begin=begin)
        for asset in assets:
            decoded = dispatch_pb2.Asset.FromString(asset.encoded)
            yield message(version=version, asset=decoded)
        for dispatch in dispatches:
            yield message(version=version, dispatch=dispatch.message)
        for each in unread:
            yield message(version=version, unread=each)
        end = control_pb2.SnapshotEnd(
            assets=len(assets), dispatches=len(dispatches), unread=len(unread)
        )
        yield message(version=version, snapshot_end=end)

    @property
    def backlog_bytes(self) -> int:
        """What waits for the slowest replica."""
        return max((each.bytes for each in self._subscriptions), default=0)

    def unsubscribe(self, subscription: Subscription) -> list[control_pb2.HeadendTransition]:
        """Stop the changes for one replica; return the transitions that it was not given."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        return subscription.take_transitions()

    def tell(self, message: control_pb2.OperatorMessage, to: Subscription | None = None) -> None:
        """Send what changes no state, to one replica or to all; it has the version of the state."""
        message.version = self.version
        for subscription in [to] if to is not None else self._subscriptions:
            subscription.put(message)

    def tell_any(self, message: control_pb2.OperatorMessage) -> bool:
        """Send what one replica is enough for; False where none has stored a snapshot."""
        subscription = next((each for each in self._subscriptions if each.stored), None)
        if subscription is None:
            return False
        self.tell(message, to=subscription)
        return True

    def _publish(self, message: control_pb2.OperatorMessage) -> int:
        self.version += 1
        message.version = self.version
        for subscription in self._subscriptions:
            subscription.put(message)
        return self.version
