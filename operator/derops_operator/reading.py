"""Manifests to facts; what cannot be read is said once for each version and not guessed."""

import sys
from collections.abc import Mapping
from typing import Any

import structlog

from derops_operator.cache import Fact
from derops_operator.facts import Kind, read_asset, read_certificate, read_dispatch, read_request

_log = structlog.get_logger("reading")


def read_fact(kind: Kind, manifest: Mapping[str, Any], now_us: int) -> Fact | None:
    """Read a manifest of any of our kinds; None where it is not what its kind promises."""
    manifest = _shared(manifest)
    try:
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
    """Return a JSON value whose texts stand in memory once: thousands of objects say the same."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {sys.intern(name): _shared(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shared(each) for each in value]
    return value
