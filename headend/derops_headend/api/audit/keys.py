"""What Idempotency-Keys were used for, by records that the database may not have yet."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from derops_headend.api.audit.record import WITHDRAWN
from derops_headend.api.ports import RecordStage, Used
from derops_headend.storage.chain import ChainedRecord

_HAS_KEY = '"idempotencyKeySha256":'
_REFUSED = range(400, 500)


class IdempotencyKey(NamedTuple):
    """An Idempotency-Key; it is its caller's alone, in one namespace."""

    caller_name: str
    namespace: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Announced:
    """A change that was announced with a key, and what became of it as far as records say."""

    used: Used
    status: int | None = None
    """HTTP; None = not told."""


def choose(announced: Iterable[Announced]) -> Used | None:
    """Return the change that a key made, else the first that it may have made.

    A change that was refused (4xx) made nothing, and leaves its key unused.
    """
    left = [each.used for each in announced if each.status not in _REFUSED]
    return min(left, key=lambda used: (not used.object_uid, used.at), default=None)


class AnnouncedKeys:
    """Holds changes that were announced with a key, until the database has their records.

    It holds the completion of a change as well, if the change was announced here.
    """

    def __init__(self) -> None:
        self._announced: dict[IdempotencyKey, dict[str, Announced]] = {}
        self._keys: dict[str, IdempotencyKey] = {}
        """The key of each change, by request."""

    def note(self, record: dict[str, Any], at: datetime) -> None:
        """Take note of a record that is durable."""
        sha256, request = record.get("idempotencyKeySha256"), record.get("requestId", "")
        if not sha256 or record.get("dryRun"):
            return
        if record["stage"] == RecordStage.RECEIVED:
            key = IdempotencyKey(record["principal"]["name"], record.get("namespace", ""), sha256)
            self._keys[request] = key
            self._announced.setdefault(key, {})[request] = Announced(used_of(record, at))
        elif record["stage"] == WITHDRAWN:
            self.drop(request)
        elif (known := self._keys.get(request)) is not None:
            of_key = self._announced[known]
            used = of_key[request].used
            of_key[request] = Announced(
                used._replace(
                    name=record.get("name", used.name), object_uid=record.get("objectUid", "")
                ),
                record.get("status"),
            )

    def drop(self, request_id: str) -> None:
        """Forget a change: nothing was done, or the database knows."""
        key = self._keys.pop(request_id, None)
        if key is not None:
            of_key = self._announced[key]
            del of_key[request_id]
            if not of_key:
                del self._announced[key]

    def note_stored(self, records: Iterable[ChainedRecord]) -> None:
        """Take note of records of a file."""
        for each in records:
            if _HAS_KEY in each.body:
                self.note(json.loads(each.body), each.at)

    def forget(self, records: Iterable[ChainedRecord]) -> None:
        """Forget changes that are completed by records which the database has."""
        for each in records:
            if _HAS_KEY not in each.body:
                continue
            record = json.loads(each.body)
            if record["stage"] == RecordStage.COMPLETE:
                self.drop(record.get("requestId", ""))

    def find(self, key: IdempotencyKey) -> dict[str, Announced]:
        """Return what is known of a key, by request."""
        return dict(self._announced.get(key, {}))


def used_of(record: dict[str, Any], at: datetime) -> Used:
    """Return what a record of an announcement says.

    Raises:
        LookupError: It does not say of which request it is, or what was asked for.
        TypeError: It says so in another form than any version does.
    """
    request_id, body_sha256 = record["requestId"], record["bodySha256"]
    name, change = record.get("name", ""), record.get("change", {})
    texts = (request_id, body_sha256, name)
    if not all(isinstance(each, str) for each in texts) or not isinstance(change, dict):
        raise TypeError("is no record of an announcement")
    return Used(
        request_id=request_id,
        at=at,
        name=name,
        object_uid="",
        body_sha256=body_sha256,
        change=change,
    )
