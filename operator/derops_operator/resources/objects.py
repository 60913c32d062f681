"""What all kinds have in common: who an object is, and how its parts are read."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from derops_operator.resources.instants import parse_instant

FINALIZER = "derops.io/in-flight"
"""On a Dispatch from its submission to its terminal phase; on a DERAsset while it has such a
Dispatch, or one that its device may still hold."""

MANAGED_BY = {"app.kubernetes.io/managed-by": "derops"}
"""Label of everything the operator creates."""

ASSET_LABEL = "derops.io/asset"
"""Label of what belongs to one asset; cert-manager copies it from a Certificate to its requests."""

_LONGEST_TEXT = 1024
_MOST_FINALIZERS = 100


class Kind(StrEnum):
    """The kinds the operator works on, by their plural names."""

    ASSET = "derassets"
    DISPATCH = "dispatches"
    REQUEST = "certificaterequests"
    CERTIFICATE = "certificates"


class ObjectKey(NamedTuple):
    """One object to reconcile."""

    kind: Kind
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """The parts of an object's metadata that decide anything."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created_us: int
    deleting_us: int | None = None
    finalizers: tuple[str, ...] = ()

    @property
    def holds_finalizer(self) -> bool:
        """Whether our finalizer is on the object."""
        return FINALIZER in self.finalizers


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An object that cannot be read, as far as it says who it is."""

    kind: Kind
    meta: Meta
    asset_name: str
    """The asset that it is or belongs to; empty = it does not even tell that."""

    may_be_held: bool
    """Whether a gateway may hold it: a Dispatch that was never given to one is with none."""

    problem: str

    @property
    def key(self) -> ObjectKey:
        """Where it is."""
        return ObjectKey(self.kind, self.meta.namespace, self.meta.name)


def read_meta(manifest: Mapping[str, Any]) -> Meta:
    """Read the metadata of any object."""
    metadata = manifest["metadata"]
    deleting = metadata.get("deletionTimestamp")
    return Meta(
        namespace=read_text(metadata["namespace"]),
        name=read_text(metadata["name"]),
        uid=read_text(metadata["uid"]),
        generation=int(metadata.get("generation", 0)),
        resource_version=read_text(metadata["resourceVersion"]),
        created_us=parse_instant(metadata["creationTimestamp"]),
        deleting_us=parse_instant(deleting) if deleting else None,
        finalizers=read_finalizers(metadata),
    )


def read_finalizers(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the finalizers of any object; they are kept, so their number has a bound."""
    finalizers = metadata.get("finalizers", ())
    if len(finalizers) > _MOST_FINALIZERS:
        raise ValueError(f"{len(finalizers)} finalizers; at most {_MOST_FINALIZERS} are read")
    return tuple(read_text(each) for each in finalizers)


def status_of_manifest(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of any object; empty = it has none."""
    status: object = manifest.get("status", {})
    if not isinstance(status, Mapping):
        raise TypeError("status is no object")
    return status


def read_conditions(status: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Read the conditions of any object."""
    conditions = tuple(status.get("conditions", ()))
    if not all(isinstance(each, Mapping) for each in conditions):
        raise TypeError("a condition is no object")
    return conditions


def digest_of(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return sys.intern(hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest())


def read_text(value: object) -> str:
    """Return a text, which stands in memory once: thousands of objects have names alike."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text belongs")
    if len(value) > _LONGEST_TEXT:
        raise ValueError(f"a name of {len(value)} characters; at most {_LONGEST_TEXT} are read")
    return sys.intern(value)
