"""What the API server holds, as last heard, with the few indexes that decisions need.

Values arrive from watches, lists and our own writes in any order; of one object the newer stays.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Certificate, Request
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.facts import Fact
from derops_operator.resources.objects import Kind, Meta, ObjectKey, Unreadable


class Cache:
    """All resources by key. Not for several threads."""

    def __init__(self) -> None:
        self._facts: dict[ObjectKey, Fact] = {}
        self._dispatches_of: dict[tuple[str, str], set[ObjectKey]] = defaultdict(set)
        self._requests_of: dict[tuple[str, str], set[ObjectKey]] = defaultdict(set)
        self._assets_in: dict[str, set[str]] = defaultdict(set)
        self._by_uid: dict[str, ObjectKey] = {}
        self._unread_of: dict[tuple[str, str], set[ObjectKey]] = defaultdict(set)
        self.unreadable: dict[ObjectKey, Unreadable] = {}
        """Objects that cannot be read as they are now; what could be read of them last stays."""

    def __len__(self) -> int:
        return len(self._facts)

    def put(self, kind: Kind, fact: Fact) -> bool:
        """Keep ``fact`` unless the known one is newer; tell whether anything is new."""
        key = ObjectKey(kind, fact.meta.namespace, fact.meta.name)
        unread = self.unreadable.get(key)
        if unread is not None and not _may_follow(fact.meta, unread.meta):
            return False
        self._mend(key)
        known = self._facts.get(key)
        if known is not None:
            if known.meta.uid == fact.meta.uid and not _is_newer(fact.meta, known.meta):
                return False
            self._forget(key)
        self._facts[key] = fact
        self._by_uid[fact.meta.uid] = key
        if isinstance(fact, Dispatch):
            self._dispatches_of[key.namespace, fact.asset_name].add(key)
        elif isinstance(fact, Request):
            self._requests_of[key.namespace, fact.asset_name].add(key)
        elif isinstance(fact, Asset):
            self._assets_in[key.namespace].add(key.name)
        return True

    def put_unreadable(self, unread: Unreadable) -> bool:
        """Note that an object cannot be read, unless a newer state of it could; tell whether."""
        key, known = unread.key, self._facts.get(unread.key)
        if known is not None and not _may_follow(unread.meta, known.meta):
            return False
        self._mend(key)
        self.unreadable[key] = unread
        self._by_uid[unread.meta.uid] = key
        self._unread_of[key.namespace, unread.asset_name].add(key)
        return True

    def uid(self, key: ObjectKey) -> str | None:
        """Return the uid of the object under a key, whether it can be read or not."""
        known = self.unreadable.get(key) or self._facts.get(key)
        return known.meta.uid if known is not None else None

    def drop(self, key: ObjectKey, uid: str | None = None) -> Fact | Unreadable | None:
        """Forget an object, where given only if it still is the one with this uid."""
        known: Fact | Unreadable | None = self._facts.get(key) or self.unreadable.get(key)
        if known is None or (uid is not None and known.meta.uid != uid):
            return None
        self._mend(key)
        return self._forget(key) or known

    def _mend(self, key: ObjectKey) -> None:
        unread = self.unreadable.pop(key, None)
        if unread is not None:
            self._by_uid.pop(unread.meta.uid, None)
            _discard(self._unread_of, (key.namespace, unread.asset_name), key)

    def _forget(self, key: ObjectKey) -> Fact | None:
        known = self._facts.pop(key, None)
        if known is None:
            return None
        self._by_uid.pop(known.meta.uid, None)
        if isinstance(known, Dispatch):
            _discard(self._dispatches_of, (key.namespace, known.asset_name), key)
        elif isinstance(known, Request):
            _discard(self._requests_of, (key.namespace, known.asset_name), key)
        elif isinstance(known, Asset):
            self._assets_in[key.namespace].discard(key.name)
            if not self._assets_in[key.namespace]:
                del self._assets_in[key.namespace]
        return known

    def fact(self, key: ObjectKey) -> Fact | None:
        """Return the object under a key."""
        return self._facts.get(key)

    def has(self, key: ObjectKey, uid: str, resource_version: str) -> bool:
        """Tell whether exactly this state of an object is known."""
        known = self.unreadable.get(key) or self._facts.get(key)
        return (
            known is not None
            and known.meta.uid == uid
            and known.meta.resource_version == resource_version
        )

    def see_again(self, key: ObjectKey, now_us: int) -> None:
        """Note that an object was found as it is known; only Certificates tell when."""
        known = self._facts.get(key)
        if isinstance(known, Certificate):
            self._facts[key] = replace(known, seen_us=now_us)

    def keys(self, kind: Kind) -> list[ObjectKey]:
        """Return the keys of one kind."""
        return [key for key in self._facts if key.kind is kind]

    def key_of(self, uid: str) -> ObjectKey | None:
        """Return the key of the object with this uid, whether it can be read or not."""
        return self._by_uid.get(uid)

    def asset(self, namespace: str, name: str) -> Asset | None:
        """Return the asset of this name."""
        fact = self._facts.get(ObjectKey(Kind.ASSET, namespace, name))
        return fact if isinstance(fact, Asset) else None

    def namespaces(self) -> set[str]:
        """Return the namespaces with assets, whether these can be read or not."""
        unread = {key.namespace for key in self.unreadable if key.kind is Kind.ASSET}
        return self._assets_in.keys() | unread

    def assets_in(self, namespace: str) -> Iterator[Asset]:
        """Yield the assets of a namespace, as far as they could be read."""
        for name in sorted(self._assets_in.get(namespace, ())):
            asset = self.asset(namespace, name)
            if asset is not None:
                yield asset

    def has_assets(self, namespace: str) -> bool:
        """Tell whether there is an asset in a namespace; it may be one that cannot be read."""
        return namespace in self._assets_in or any(
            key.kind is Kind.ASSET and key.namespace == namespace for key in self.unreadable
        )

    def dispatch(self, namespace: str, name: str) -> Dispatch | None:
        """Return the dispatch of this name."""
        fact = self._facts.get(ObjectKey(Kind.DISPATCH, namespace, name))
        return fact if isinstance(fact, Dispatch) else None

    def certificate(self, namespace: str, name: str) -> Certificate | None:
        """Return our Certificate of this name."""
        fact = self._facts.get(ObjectKey(Kind.CERTIFICATE, namespace, name))
        return fact if isinstance(fact, Certificate) else None

    def dispatches_of(self, namespace: str, asset_name: str) -> Iterator[Dispatch]:
        """Yield the dispatches that name this asset."""
        for key in self._dispatches_of.get((namespace, asset_name), ()):
            fact = self._facts[key]
            if isinstance(fact, Dispatch):
                yield fact

    def unread_dispatches_of(self, namespace: str, asset_name: str) -> list[str]:
        """Return the names of dispatches of this asset of which nothing could ever be read."""
        keys: Iterable[ObjectKey] = self._unread_of.get((namespace, asset_name), ())
        return sorted(
            key.name
            for key in keys
            if key.kind is Kind.DISPATCH
            and key not in self._facts
            and self.unreadable[key].may_be_held
        )

    def requests_of(self, namespace: str, asset_name: str) -> tuple[Request, ...]:
        """Return the requests that say they belong to this asset."""
        keys: Iterable[ObjectKey] = self._requests_of.get((namespace, asset_name), ())
        facts = (self._facts[key] for key in keys)
        return tuple(fact for fact in facts if isinstance(fact, Request))


def _may_follow(meta: Meta, known: Meta) -> bool:
    """Tell whether a state may have come after a known one: of another object it always may."""
    return meta.uid != known.uid or _is_newer(meta, known)


def _is_newer(left: Meta, right: Meta) -> bool:
    try:
        return int(left.resource_version) > int(right.resource_version)
    except ValueError:
        # Before Kubernetes 1.35 versions are opaque by contract; then what arrives last stays.
        return left.resource_version != right.resource_version


def _discard(
    index: dict[tuple[str, str], set[ObjectKey]], group: tuple[str, str], key: ObjectKey
) -> None:
    members = index.get(group)
    if members is not None:
        members.discard(key)
        if not members:
            del index[group]
