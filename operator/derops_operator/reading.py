"""Manifests to facts; what cannot be read is said once for each version and not guessed."""

import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import structlog

from derops_operator.cache import Fact
from derops_operator.facts import Kind, read_asset, read_certificate, read_dispatch, read_request

_log = structlog.get_logger("reading")


def read_fact(kind: Kind, manifest: Mapping[str, Any], now_us: int) -> Fact | None:
    """Read a manifest of any of our kinds; None where it is not what its kind promises."""
    try:
        # Without managed fields: they are the larger half, and nothing here looks at them.
        metadata = {k: each for k, each in manifest["metadata"].items() if k != "managedFields"}
        manifest = _shared({**manifest, "metadata": metadata})
        if kind is Kind.ASSET:
            return read_asset(manifest)
        if kind is Kind.DISPATCH:
            return read_dispatch(manifest)
        if kind is Kind.REQUEST:
            return read_request(manifest)
        return read_certificate(manifest, now_us)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        metadata = manifest.get("metadata", {})
        _log.error(
            "object.not_read",
            kind=kind.value,
            namespace=metadata.get("namespace"),
            name=metadata.get("name"),
            why=f"{type(error).__name__}: {error}",
        )
        return None


def _shared(value: Any) -> Any:
    """Return a JSON value that shares what thousands of objects say alike.

    Texts stand in memory once. So do objects without others inside, as conditions are, when they
    arrive soon after each other. So nobody may change what comes from here.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        items = tuple((sys.intern(name), _shared(each)) for name, each in value.items())
        if any(isinstance(each, dict | list) for _, each in items):
            return dict(items)
        return _flat(items, tuple(type(each) for _, each in items))
    if isinstance(value, list):
        return [_shared(each) for each in value]
    return value


@lru_cache(maxsize=4096)
def _flat(items: tuple[tuple[str, Any], ...], types: tuple[type, ...]) -> dict[str, Any]:
    """Return one and the same object for the same items; ``types`` tell True from 1."""
    return dict(items)
