"""What came for an asset: what waits to be handled, and what waits until it can be stored."""

from collections import deque
from dataclasses import dataclass, field

from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent.ports import Reading

MAX_HEARD_BYTES = 32 * 1024**2
"""Of what a gateway said and was not handled yet. Beyond, the stream ends; a snapshot tells it."""

EVENT_BYTES = 1024
"""What an event costs beside its messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything between SyncBegin and SyncEnd."""

    revision: agent_pb2.Revision
    asset: dispatch_pb2.Asset
    dispatches: list[dispatch_pb2.Dispatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What changed, and the state that it is from; an older gateway does not say which."""

    part: dispatch_pb2.Asset | dispatch_pb2.Dispatch
    revision: agent_pb2.Revision = field(default_factory=agent_pb2.Revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """A report is durable at the gateway."""

    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The headend is done with a dispatch."""

    uid: str


Event = Snapshot | Change | Acknowledged | Settled | Reading


def weigh(event: Event) -> int:
    """Return about how many bytes of memory an event takes."""
    match event:
        case Snapshot():
            messages = [event.asset, *event.dispatches]
            return sum(EVENT_BYTES + message.ByteSize() for message in messages)
        case Change():
            return EVENT_BYTES + event.part.ByteSize()
        case _:
            return EVENT_BYTES


class Inbox:
    """Events in the order in which they came. Its bound is on bytes of memory."""

    def __init__(self) -> None:
        self.unstored: dict[str, Event] = {}
        """The newest of each thing that came while the ledger took nothing: it is handled again."""

        self._events: deque[Event] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        """Tell whether something waits to be handled."""
        return bool(self._events)

    @property
    def first(self) -> Event:
        """What is to be handled next."""
        return self._events[0]

    def put(self, event: Event) -> bool:
        """Add an event; return whether there was room for it."""
        self._bytes += weigh(event)
        if self._bytes > MAX_HEARD_BYTES:
            return False
        self._events.append(event)
        return True

    def remove_first(self) -> None:
        """Remove what was handled."""
        self._events.popleft()

    def put_off_first(self) -> None:
        """Keep the first until it can be stored, and nothing that it makes void."""
        event = self._events.popleft()
        match event:
            case Snapshot():
                self.unstored = {"": event}
            case Change(part=dispatch_pb2.Asset()):
                self._put_off("asset", event)
            case Change(part=dispatch_pb2.Dispatch(uid=uid)) | Settled(uid=uid):
                self._put_off(f"dispatch {uid}", event)

    def take_up_again(self) -> None:
        """Have what was put off handled, before all that came later."""
        self._events.extendleft(reversed(self.unstored.values()))
        self.unstored.clear()

    def recount(self) -> None:
        """Count what memory is taken, once all that waited was handled or put off."""
        self._bytes = sum(weigh(event) for event in self.unstored.values())

    def _put_off(self, about: str, event: Event) -> None:
        self.unstored.pop(about, None)
        self.unstored[about] = event
