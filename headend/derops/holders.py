"""Which stream of an asset is the newest, and which processes held it.

Gateways decide by it, the operator relays it between them: both read the same rules here.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from heapq import nlargest
from typing import NamedTuple

from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2, dispatch_pb2

MAX_EPOCH_AHEAD_MS = 300_000
"""How far an epoch may be ahead of the clock of whoever hears it."""

REMEMBERED_US = 24 * 3600 * SECOND_US
"""How long an instance is remembered after another took over."""

MAX_HOLDERS = 1024
"""Instances that are remembered of one asset."""

MAX_HOLDERS_IN_ALL = 65_536
"""Instances of all assets, about 25 MiB; beyond, an asset keeps ``FEW_HOLDERS``."""

FEW_HOLDERS = 16

_DIGEST_CHARACTERS = 32
_PLACES = ("previous", "current", "next")


class Rank(NamedTuple):
    """What the streams of an asset are ordered by."""

    epoch: int = 0
    serial_number: str = ""
    """Of its certificate; empty = not told."""

    instance: str = ""
    """The digest of the instance that has it; empty = not told. It decides no order."""


class Holder(NamedTuple):
    """An instance that had the stream of an asset."""

    since_us: int
    """When its first stream began at the gateway."""

    opened_us: int
    """When its last stream began."""

    replaced_us: int = 0
    """When the stream of the instance that took over began; 0 = none did."""

    alive: bool = False
    """Its stream was alive when it was replaced."""


def is_plausible_epoch(epoch: int, now_us: int) -> bool:
    """Tell whether an epoch, in milliseconds, is not too far ahead of a clock."""
    return epoch <= now_us // 1000 + MAX_EPOCH_AHEAD_MS


def place_of(ledger: dispatch_pb2.IdentityLedger, serial_number: str) -> int:
    """Return how new a certificate is by its place in the ledger; -1 = it is not there any more."""
    for place, slot in enumerate(_PLACES):
        if getattr(ledger, slot).serial_number == serial_number:
            return place
    return -1


def is_older_key(one: Rank, other: Rank, ledger: dispatch_pb2.IdentityLedger) -> bool:
    """Tell whether the key of ``one`` stands before that of ``other`` in the ledger."""
    if not one.serial_number or not other.serial_number:
        return False
    return place_of(ledger, one.serial_number) < place_of(ledger, other.serial_number)


def outranks(one: Rank, other: Rank, ledger: dispatch_pb2.IdentityLedger) -> bool:
    """Tell whether ``one`` takes over from ``other``: by the place of its key, then by epoch."""
    if is_older_key(one, other, ledger):
        return False
    return is_older_key(other, one, ledger) or one.epoch > other.epoch


def digest_of(instance_id: str) -> str:
    """Return the digest of an instance id: of one length, whatever id the peer chose."""
    return hashlib.blake2b(instance_id.encode(), digest_size=_DIGEST_CHARACTERS // 2).hexdigest()


class Holders:
    """Who held the streams of all assets in the last 24 h. Not for several threads.

    At a bound, the instances that held a stream for the shortest time are forgotten, and of about
    equal ones the newest. So throw-away ids push out each other and not an agent. Of 1,024 who are
    remembered in 24 h, none that held it for three minutes can be lost.
    """

    def __init__(self, on_forgotten: Callable[[], object] = lambda: None) -> None:
        self._holders: dict[str, dict[str, Holder]] = {}
        self._count = 0
        self._on_forgotten = on_forgotten

    def of(self, asset_uid: str) -> Mapping[str, Holder]:
        """Return the holders of an asset, by the digest of their id."""
        return self._holders.get(asset_uid, {})

    def messages(self, asset_uid: str) -> list[control_pb2.Instance]:
        """Return the holders of an asset for the wire."""
        return [message_of(digest, each) for digest, each in self.of(asset_uid).items()]

    def foremost(self, asset_uid: str, now_us: int) -> list[control_pb2.Instance]:
        """Return those that had the stream for the longest time, ``FEW_HOLDERS`` at most."""
        holders = self.of(asset_uid)
        best = nlargest(FEW_HOLDERS, holders, key=lambda each: _worth(holders[each], now_us))
        return [message_of(digest, holders[digest]) for digest in best]

    def put(self, asset_uid: str, digest: str, holder: Holder, now_us: int) -> None:
        """Remember a holder as it is now."""
        holders = self._holders.setdefault(asset_uid, {})
        self._count += digest not in holders
        holders[digest] = holder
        most = FEW_HOLDERS if self._count > MAX_HOLDERS_IN_ALL else MAX_HOLDERS
        if len(holders) > most:
            self._make_room(holders, digest, most, now_us)

    def merge(
        self, asset_uid: str, told: Iterable[control_pb2.Instance], now_us: int
    ) -> list[control_pb2.Instance]:
        """Take what somebody else remembers; return what is new of it."""
        news = []
        for each in told:
            if len(each.id) != _DIGEST_CHARACTERS:
                continue
            heard = Holder(
                each.since_us or each.opened_us, each.opened_us, each.replaced_us, each.alive
            )
            known = self.of(asset_uid).get(each.id)
            holder = heard if known is None else _join(known, heard)
            if holder != known and not is_over(holder, now_us):
                self.put(asset_uid, each.id, holder, now_us)
                news.append(message_of(each.id, holder))
        return news

    def forget(self, asset_uid: str) -> None:
        """Forget all of an asset."""
        self._count -= len(self._holders.pop(asset_uid, ()))

    def uids(self) -> set[str]:
        """Return the assets of which any holder is known."""
        return set(self._holders)

    def _make_room(self, holders: dict[str, Holder], kept: str, most: int, now_us: int) -> None:
        for digest in [each for each in holders if is_over(holders[each], now_us)]:
            del holders[digest]
            self._count -= 1
        others = [each for each in holders if each != kept]
        others.sort(key=lambda each: _worth(holders[each], now_us))
        for digest in others[: max(0, len(holders) - most)]:
            del holders[digest]
            self._count -= 1
            self._on_forgotten()


def is_over(holder: Holder, now_us: int) -> bool:
    """Tell whether it was replaced so long ago that it counts no more."""
    return 0 < holder.replaced_us < now_us - REMEMBERED_US


def message_of(digest: str, holder: Holder) -> control_pb2.Instance:
    """Return a holder for the wire."""
    return control_pb2.Instance(
        id=digest,
        since_us=holder.since_us,
        opened_us=holder.opened_us,
        replaced_us=holder.replaced_us,
        alive=holder.alive,
    )


def _join(one: Holder, other: Holder) -> Holder:
    return Holder(
        min(one.since_us, other.since_us),
        max(one.opened_us, other.opened_us),
        max(one.replaced_us, other.replaced_us),
        one.alive or other.alive,
    )


def _worth(holder: Holder, now_us: int) -> tuple[int, int]:
    held_us = (holder.replaced_us or now_us) - holder.since_us
    return (max(0, held_us) // SECOND_US).bit_length(), -holder.since_us
