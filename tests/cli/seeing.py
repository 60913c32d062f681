"""Evidence as it would be collected: an asset that is well, and what makes it otherwise."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.crds.manifests import asset_manifest, dispatch_manifest

from derops.installation import CONFIG_MAP, KEY, LINKS
from derops.resources.derassets import DERAsset, parse_asset
from derops.resources.dispatches import Dispatch, parse_dispatch
from derops_cli.causes import Place
from derops_cli.evidence import (
    Evidence,
    Installation,
    Missing,
    Right,
    Sample,
    Stored,
    Surroundings,
)
from derops_cli.reading import read_installation

NOW = datetime(2026, 12, 1, 3, 0, tzinfo=UTC)
PLACE = Place(asset="battery-7", namespace="pilot-north")
INTERVAL_SECONDS = 1
DENIED = Missing(
    f"ConfigMap {CONFIG_MAP} in derops-system",
    "you may not get configmaps in namespace derops-system",
    Right("get", "configmaps", "derops-system"),
)

Manifest = dict[str, Any]


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def condition(
    kind: str, status: str, reason: str, message: str = "", seconds: float = 3600
) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": ago(seconds),
    }


FLOWING = condition("DataFlowing", "True", "Flowing", "data flows")
CONNECTED = condition("Connected", "True", "StreamOpen", "the agent's stream is open")
OFFLINE = condition("Connected", "False", "NoStream", "the agent has no stream (AgentSilent)", 240)


def manifest(
    *conditions: dict[str, Any],
    status: dict[str, Any] | None = None,
    not_after_seconds: float = -864_000,
    **spec: Any,
) -> Manifest:
    """Return an asset with these conditions; its certificate ended so many seconds ago."""
    metadata = {
        "namespace": "pilot-north",
        "uid": "0b9f2f5e-7f43-4c5e-a8a2-111111111111",
        "generation": 1,
        "creationTimestamp": ago(864_000),
    }
    found = asset_manifest(
        "battery-7",
        metadata=metadata,
        telemetry={"intervalSeconds": INTERVAL_SECONDS},
        operatingState="InService",
        **spec,
    )
    found["status"] = {
        "observedGeneration": 1,
        "conditions": list(conditions),
        "lastConnectedTime": ago(3600),
        "identity": {
            "current": {
                "serialNumber": "0abc",
                "publicKeySHA256": "00" * 32,
                "notAfter": ago(not_after_seconds),
            }
        },
        **(status or {}),
    }
    return found


def asset(*conditions: dict[str, Any], **otherwise: Any) -> DERAsset:
    return parse_asset(manifest(*conditions, **otherwise))


def config_map(observed_seconds: float = 12, **faults: str) -> Manifest:
    """Return the ConfigMap of the operator; ``faults``: reasons by condition that are False."""
    conditions = [
        condition(kind, "False", faults[kind], f"what {kind} says", 90)
        if kind in faults
        else condition(kind, "True", "Holds")
        for kind in LINKS
    ]
    status = {"observedAt": ago(observed_seconds), "conditions": conditions}
    return {"data": {KEY: json.dumps(status)}}


def installation(observed_seconds: float = 12, **faults: str) -> Installation:
    found = read_installation(config_map(observed_seconds, **faults))
    assert isinstance(found, Installation)
    return found


def surroundings(
    found: Installation | Missing | None = None, clock_ahead_seconds: float | None = 0.0
) -> Surroundings:
    return Surroundings(
        installation=installation() if found is None else found,
        workloads=(),
        clock_ahead_seconds=clock_ahead_seconds,
    )


def stored(age_seconds: float, received_seconds: float | None = None, **otherwise: Any) -> Stored:
    """Return what the database knows where the newest sample is so old."""
    received_seconds = age_seconds if received_seconds is None else received_seconds
    newest = Sample(
        at=NOW - timedelta(seconds=age_seconds),
        age_seconds=age_seconds,
        received_at=NOW - timedelta(seconds=received_seconds),
    )
    return Stored(newest=newest, **otherwise)


def evidence(seen: DERAsset | None = None, **otherwise: Any) -> Evidence:
    """Return what is seen where all is well, or with these parts otherwise."""
    base = Evidence(asset=seen or asset(FLOWING, CONNECTED), surroundings=surroundings())
    return replace(base, **otherwise)


def dispatch(phase: str, reason: str, *conditions: dict[str, Any], **otherwise: Any) -> Dispatch:
    """Return a Dispatch with a start an hour ago, made two hours ago."""
    spec = {"startTime": ago(3600), "durationSeconds": 1800, **otherwise}
    metadata = {
        "namespace": "pilot-north",
        "uid": "0b9f2f5e-7f43-4c5e-a8a2-222222222222",
        "creationTimestamp": ago(7200),
    }
    found = dispatch_manifest("evening-peak", "battery-7", metadata=metadata, **spec)
    found["status"] = {
        "observedGeneration": 1,
        "phase": phase,
        "reason": reason,
        "message": f"what {reason} says",
        "conditions": list(conditions),
    }
    return parse_dispatch(found)
