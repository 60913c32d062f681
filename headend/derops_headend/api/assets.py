"""DERAssets as callers see them, and lists of them. Pure.

Thousands are kept. So each is kept as the bytes of its answer, beside the few values by which a
list is filtered and sorted.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from derops.resources.derassets import DERAssetSpec, DERAssetStatus
from derops_headend.api.models import Model
from derops_headend.api.pages import page_after, place_of

MOST_BYTES, MOST_LABELS = 16_384, 64
"""The most bytes of one asset as it is answered and kept. Whoever writes a DERAsset chooses its
size."""

MOST_PAGE_BYTES = 2 * 1024**2
"""The most bytes of one page of assets."""

_LONGEST_PROBLEM = 200
_PLACE = TypeAdapter(tuple[str, str, str])


class AssetView(Model):
    """A DERAsset; ``spec`` with its defaults, ``status`` as the operator last wrote it."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    created_at: datetime | None = None
    deleted_at: datetime | None = Field(
        default=None, description="When its deletion was asked for; it is still there."
    )
    labels: dict[str, str] = {}
    spec: DERAssetSpec | None = None
    status: DERAssetStatus | None = None
    problem: str | None = Field(
        default=None, description="Why there is no spec and no status: it cannot be read."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAsset:
    """A DERAsset as it was last heard of."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    type: str
    """Empty = it cannot be read."""

    operating_state: str
    ready: str
    """Status of the condition: True, False or Unknown."""

    connected: str
    labels: Mapping[str, str]
    body: bytes
    """An ``AssetView`` in JSON, at most MOST_BYTES."""


def read_asset(manifest: Mapping[str, Any]) -> KnownAsset:
    """Read a DERAsset; what is not as its kind promises is told in its ``problem``.

    Raises:
        Exception: It does not even identify itself.
    """
    view = _identify(manifest)
    try:
        full = _fill(view, manifest)
        body = _render(full)
        if len(body) <= MOST_BYTES and len(full.labels) <= MOST_LABELS:
            return _known(full, body)
        problem = (
            f"it has {len(body)} bytes and {len(full.labels)} labels; at most {MOST_BYTES} bytes "
            f"with {MOST_LABELS} labels are shown"
        )
    except Exception as error:
        problem = _describe(error)
    bare = view.model_copy(update={"problem": problem})
    return _known(bare, _render(bare))


def view_of(known: KnownAsset) -> AssetView:
    """Return what the bytes of a known asset say."""
    return AssetView.model_validate_json(known.body)


def _identify(manifest: Mapping[str, Any]) -> AssetView:
    metadata = manifest["metadata"]
    view = AssetView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        generation=int(metadata.get("generation", 0)),
    )
    if max(len(view.name), len(view.namespace), len(view.uid)) > 253:
        raise ValueError("a name of more than 253 characters")
    return view


def _fill(view: AssetView, manifest: Mapping[str, Any]) -> AssetView:
    metadata = manifest["metadata"]
    deleted = metadata.get("deletionTimestamp")
    return AssetView(
        **{name: getattr(view, name) for name in AssetView.model_fields if getattr(view, name)},
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        deleted_at=datetime.fromisoformat(deleted) if deleted else None,
        labels=metadata.get("labels") or {},
        spec=DERAssetSpec.model_validate(manifest["spec"]),
        status=DERAssetStatus.model_validate(manifest["status"])
        if manifest.get("status")
        else None,
    )


def _render(view: AssetView) -> bytes:
    return view.model_dump_json(by_alias=True, exclude_none=True).encode()


def _known(view: AssetView, body: bytes) -> KnownAsset:
    conditions = {each.type: each.status for each in view.status.conditions} if view.status else {}
    return KnownAsset(
        namespace=view.namespace,
        name=view.name,
        uid=view.uid,
        resource_version=view.resource_version,
        type=view.spec.type if view.spec else "",
        operating_state=view.spec.operating_state if view.spec else "",
        ready=conditions.get("Ready", "Unknown"),
        connected=conditions.get("Connected", "Unknown"),
        labels=view.labels,
        body=body,
    )


def _describe(error: Exception) -> str:
    """Return which fields are wrong, not what is in them."""
    if isinstance(error, ValidationError):
        where = ", ".join(
            ".".join(map(str, each["loc"])) for each in error.errors(include_input=False)[:5]
        )
        return f"not as its kind promises: {where}"[:_LONGEST_PROBLEM]
    return f"{type(error).__name__} in its metadata or status"


class Sort(StrEnum):
    """How a list is sorted; equals are in the order of namespace and name."""

    NAME = "name"
    TYPE = "type"
    OPERATING_STATE = "operatingState"
    READY = "ready"
    CONNECTED = "connected"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFilter:
    """Which assets, in which order; None = whatever it is."""

    type: str | None = None
    operating_state: str | None = None
    ready: str | None = None
    connected: str | None = None
    labels: Sequence[tuple[str, str | None]] = ()
    """Names with the value each must have; None = any, but it is there."""

    text: str = ""
    """Part of the name, in any case."""

    sort: Sort = Sort.NAME
    descending: bool = False


class AssetChoice(NamedTuple):
    """A part of a list."""

    assets: list[KnownAsset]
    next: str | None
    """Where the next begins; None = this is the last."""


def choose(
    assets: Iterable[KnownAsset], wanted: AssetFilter, limit: int, after: str | None
) -> AssetChoice:
    """Return the assets that are wanted, from behind ``after`` on.

    They are ``limit`` at most, and fewer if those would have more than MOST_PAGE_BYTES.

    Raises:
        ProblemError: INVALID: ``after`` is none of ours.
    """
    key = attrgetter(_ATTRIBUTES[wanted.sort], "namespace", "name")
    chosen = sorted(_filter(assets, wanted), key=key)
    if wanted.descending:
        if after is not None:
            del chosen[bisect_left(chosen, place_of(after, _PLACE), key=key) :]
        chosen.reverse()
    elif after is not None:
        del chosen[: bisect_right(chosen, place_of(after, _PLACE), key=key)]
    page = list(_first_bytes(chosen[:limit]))
    return AssetChoice(page, page_after(*key(page[-1])) if len(chosen) > len(page) else None)


def _first_bytes(assets: Iterable[KnownAsset]) -> Iterator[KnownAsset]:
    size = 0
    for each in assets:
        size += len(each.body)
        if size > MOST_PAGE_BYTES:
            return
        yield each


_ATTRIBUTES = {
    Sort.NAME: "name",
    Sort.TYPE: "type",
    Sort.OPERATING_STATE: "operating_state",
    Sort.READY: "ready",
    Sort.CONNECTED: "connected",
}


def _filter(assets: Iterable[KnownAsset], wanted: AssetFilter) -> Iterable[KnownAsset]:
    """Return the assets that are wanted; look only at the values that are asked for."""
    assets = _filter_values(assets, wanted)
    if wanted.text:
        text = wanted.text.lower()
        assets = [each for each in assets if text in each.name]
    for name, value in wanted.labels:
        assets = [
            each
            for each in assets
            if name in each.labels and (value is None or each.labels[name] == value)
        ]
    return assets


def _filter_values(assets: Iterable[KnownAsset], wanted: AssetFilter) -> Iterable[KnownAsset]:
    for attribute in ("type", "operating_state", "ready", "connected"):
        value = getattr(wanted, attribute)
        if value is not None:
            look = attrgetter(attribute)
            assets = [each for each in assets if look(each) == value]
    return assets
