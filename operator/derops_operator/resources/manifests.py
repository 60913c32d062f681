"""Manifests to facts. Anybody writes manifests: whatever fails here concerns one object alone."""

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from derops.lifecycle import TERMINAL, Phase
from derops_operator.resources.assets import read_asset
from derops_operator.resources.certificates import Request, read_certificate, read_request
from derops_operator.resources.dispatches import (
    CREATOR_ANNOTATION,
    REQUEST_ID_ANNOTATION,
    read_dispatch,
)
from derops_operator.resources.facts import Fact
from derops_operator.resources.instants import parse_instant
from derops_operator.resources.objects import (
    ASSET_LABEL,
    FINALIZER,
    Kind,
    Meta,
    ObjectKey,
    Unreadable,
    read_finalizers,
)
from derops_operator.resources.pem import read_csr, read_issued

_KEPT_METADATA = (
    "namespace",
    "name",
    "uid",
    "generation",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
    "labels",
    "ownerReferences",
)
"""Managed fields and annotations are the larger half of an object, and grow without bound. Of them
two annotations are read, and a bounded part of each is kept."""

_PROBLEM_LIMIT = 200
_NAME_LIMIT = 253
_SHARED_TEXT_LIMIT = 1100
"""Characters of the longest text in a shared value; a message in status has 1,024."""

_ENDS_OF_THE_PROGRAM = (KeyboardInterrupt, SystemExit, GeneratorExit)

Found = TypeVar("Found")


def read_fact(kind: Kind, manifest: Mapping[str, Any], now_us: int) -> Fact | Unreadable:
    """Read a manifest of any of our kinds; what is not what its kind promises is told as such."""
    fact, problem = attempt(lambda: _read(kind, manifest, now_us))
    return fact if fact is not None else _unreadable(kind, manifest, problem)


def identify(kind: Kind, manifest: Mapping[str, Any]) -> tuple[ObjectKey, str, str] | None:
    """Return key, uid and version of an object; None where it does not say who it is."""

    def look() -> tuple[ObjectKey, str, str]:
        names = [manifest["metadata"][field] for field in ("namespace", "name", "uid")]
        version = manifest["metadata"].get("resourceVersion", "")
        if not all(isinstance(each, str) for each in (*names, version)):
            raise TypeError("a name is no text")
        for each in (*names, version):
            each.encode()  # half a surrogate pair is text, and fits into no message
        return ObjectKey(kind, names[0], names[1]), names[2], version

    return attempt(look)[0]


def attempt(work: Callable[[], Found]) -> tuple[Found | None, str]:
    """Return what ``work`` returns, else None and why it failed, whatever was thrown.

    That is more than ``Exception``: parsers written in Rust panic with a ``BaseException``.
    """
    try:
        return work(), ""
    except _ENDS_OF_THE_PROGRAM:
        raise
    except BaseException as error:
        return None, describe(error)


def describe(error: BaseException) -> str:
    """Return in one short line what was thrown; its own words may be long, or fail."""
    try:
        words = " ".join(str(error)[: 2 * _PROBLEM_LIMIT].split())
    except Exception:
        words = "it does not say why"
    return f"{type(error).__name__}: {words}"[:_PROBLEM_LIMIT]


def _read(kind: Kind, manifest: Mapping[str, Any], now_us: int) -> Fact:
    metadata = manifest["metadata"]
    slim: dict[str, Any] = {
        "metadata": {field: metadata[field] for field in _KEPT_METADATA if field in metadata},
        "spec": manifest["spec"],
        "status": _shared(manifest.get("status", {})),
    }
    if kind is Kind.ASSET:
        return read_asset(slim)
    if kind is Kind.DISPATCH:
        said = metadata.get("annotations") or {}
        kept = (CREATOR_ANNOTATION, REQUEST_ID_ANNOTATION)
        slim["metadata"]["annotations"] = {name: said[name] for name in kept if name in said}
        return read_dispatch(slim)
    if kind is Kind.CERTIFICATE:
        return read_certificate(slim, now_us)
    return _read_request(slim)


def _read_request(slim: dict[str, Any]) -> Request:
    """Read a CertificateRequest; one whose parts cannot be read is one with a problem."""
    chain = slim["status"].get("certificate")
    csr, why_no_csr = attempt(lambda: read_csr(slim["spec"]["request"]))
    issued, why_not = attempt(lambda: read_issued(chain)) if chain else (None, "")
    problem = f"spec.request: {why_no_csr}" if why_no_csr else ""
    if why_not:
        problem = problem or f"status.certificate: {why_not}"
    return read_request(slim, csr, issued, problem)


def _unreadable(kind: Kind, manifest: Mapping[str, Any], problem: str) -> Unreadable:
    identity = identify(kind, manifest)
    key, uid, version = identity if identity is not None else (ObjectKey(kind, "", ""), "", "")
    metadata = manifest["metadata"] if identity is not None else {}
    deleting_us, _ = attempt(lambda: parse_instant(metadata["deletionTimestamp"]))
    finalizers, _ = attempt(lambda: read_finalizers(metadata))
    asset_name, _ = attempt(lambda: _asset_name(kind, manifest))
    held, failed = attempt(lambda: kind is Kind.ASSET or _may_be_held(manifest))
    return Unreadable(
        kind=kind,
        meta=Meta(
            namespace=key.namespace,
            name=key.name,
            uid=uid,
            generation=0,
            resource_version=version,
            created_us=0,
            deleting_us=deleting_us,
            finalizers=finalizers or (),
        ),
        asset_name=asset_name or "",
        may_be_held=bool(held or failed) and kind in (Kind.ASSET, Kind.DISPATCH),
        problem=problem,
    )


def _asset_name(kind: Kind, manifest: Mapping[str, Any]) -> str:
    if kind is Kind.ASSET:
        return str(manifest["metadata"]["name"])
    if kind is Kind.DISPATCH:
        return str(manifest["spec"]["assetRef"]["name"])[:_NAME_LIMIT]
    return str(manifest["metadata"]["labels"][ASSET_LABEL])[:_NAME_LIMIT]


def _may_be_held(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a Dispatch may be with a gateway: the finalizer comes before the submission.

    What ended is with none, unless its device has yet to be reverted.
    """
    if FINALIZER in manifest["metadata"].get("finalizers", ()):
        return True
    status = manifest.get("status", {})
    phase = status.get("phase", Phase.SUBMITTED)
    unreverted = any(
        (each.get("type"), each.get("status")) == ("Reverted", "False")
        for each in status.get("conditions", ())
    )
    submitted = phase != Phase.SUBMITTED or "submittedAt" in status.get("timeline", {})
    return unreverted or (submitted and phase not in TERMINAL)


def _shared(value: Any) -> Any:
    """Return a JSON value that shares what thousands of objects say alike.

    Texts stand in memory once. So do objects without others inside, as conditions are, when they
    arrive soon after each other. So nobody may change what comes from here.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        items = tuple((sys.intern(name), _shared(each)) for name, each in value.items())
        if any(isinstance(each, dict | list) for _, each in items) or not _is_small(items):
            return dict(items)
        return _flat(items, tuple(type(each) for _, each in items))
    if isinstance(value, list):
        return [_shared(each) for each in value]
    return value


def _is_small(items: tuple[tuple[str, Any], ...]) -> bool:
    """Tell whether thousands of such values may be kept: who writes one chooses its size."""
    return len(items) <= 16 and all(
        not isinstance(each, str) or len(each) <= _SHARED_TEXT_LIMIT for _, each in items
    )


@lru_cache(maxsize=4096)
def _flat(items: tuple[tuple[str, Any], ...], types: tuple[type, ...]) -> dict[str, Any]:
    """Return one and the same object for the same items; ``types`` tell True from 1."""
    return dict(items)
