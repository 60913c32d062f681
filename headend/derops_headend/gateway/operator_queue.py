"""Messages that wait for the operator: the newest of each thing, in a bounded number of bytes."""

from collections.abc import Iterator
from itertools import islice

from derops.wire.v1 import control_pb2
from derops_headend.fleet.shares import OVERHEAD_BYTES

MAX_WAITING_BYTES = 64 * 1024**2
"""How many bytes may wait before the stream is ended: a new snapshot brings all anew."""

MAX_STRAY_BYTES = 256 * 1024
"""How many bytes the reports of one asset may take before one on an unheld dispatch is left out."""

Message = control_pb2.ReplicaMessage
_Key = tuple[str, ...]
_CLONE = "CloneSuspected"


class OperatorQueue:
    """First in, first out; but a message takes the place of an older one of the same thing.

    So state may come earlier than it was put: it is what holds now. ``accepted_version`` never
    does: what comes before it proves what had happened before that version was stored.
    """

    def __init__(self) -> None:
        self._waiting: dict[_Key, tuple[Message | Iterator[Message], int]] = {}
        self._reports: dict[str, int] = {}
        self._numbers = 0
        self.bytes = 0

    def put_all(self, messages: Iterator[Message]) -> None:
        """Add messages, each of which is made at its turn."""
        self._numbers += 1
        self._waiting["all", str(self._numbers)] = (messages, 0)

    def put(self, message: Message) -> bool:
        """Add a message; return False if too much waits already."""
        key = self._key_of(message)
        old, held = self._waiting.get(key, (None, 0))
        if isinstance(old, Message) and _is_older(message, old):
            return True
        more = message.ByteSize() + OVERHEAD_BYTES - held
        if self.bytes + more > MAX_WAITING_BYTES:
            return False
        self._waiting[key] = (message, held + more)
        self._note(key, more)
        return True

    def has_room_for_stray(self, report: control_pb2.AgentReport) -> bool:
        """Tell whether a report about a dispatch that is not held here may wait."""
        key = ("report", report.asset_uid, report.report.dispatch_uid)
        _, held = self._waiting.get(key, (None, 0))
        more = report.ByteSize() + OVERHEAD_BYTES - held
        return self._reports.get(report.asset_uid, 0) + more <= MAX_STRAY_BYTES

    def take(self, most: int) -> list[Message]:
        """Return the next messages, up to ``most``; none where nothing waits."""
        messages: list[Message] = []
        while self._waiting and len(messages) < most:
            key = next(iter(self._waiting))
            item, _ = self._waiting[key]
            if isinstance(item, Message):
                messages.append(item)
                self._drop(key)
            elif some := list(islice(item, most - len(messages))):
                messages += some
            else:
                self._drop(key)
        return messages

    def _drop(self, key: _Key) -> None:
        _, size = self._waiting.pop(key)
        self._note(key, -size)

    def _note(self, key: _Key, size: int) -> None:
        self.bytes += size
        if key[0] == "report":
            left = self._reports.get(key[1], 0) + size
            if left:
                self._reports[key[1]] = left
            else:
                self._reports.pop(key[1], None)

    def _key_of(self, message: Message) -> _Key:
        kind = message.WhichOneof("kind") or ""
        match kind:
            case "session":
                return self._key_of_session(message.session)
            case "delivery":
                return kind, message.delivery.dispatch_uid
            case "device":
                return kind, message.device.asset_uid
            case "headend":
                return (kind,)
            case "report":
                return kind, message.report.asset_uid, message.report.report.dispatch_uid
            case "accepted_version" if self._waiting:
                last = next(reversed(self._waiting))
                if last[0] == kind:
                    return last
        self._numbers += 1
        return kind, str(self._numbers)

    def _key_of_session(self, session: control_pb2.Session) -> _Key:
        """Return the key of a session; a later one does not replace word of a clone."""
        kind, uid = "session", session.asset_uid
        if session.end_reason != _CLONE:
            return kind, uid
        for earlier in ((kind, uid), (_CLONE, uid)):
            if earlier in self._waiting:
                self._drop(earlier)
        return _CLONE, uid


def _is_older(message: Message, than: Message) -> bool:
    """Tell whether a message is an earlier report of the same ledger."""
    new, old = message.report.report, than.report.report
    return new.ledger_id == old.ledger_id and new.sequence < old.sequence
