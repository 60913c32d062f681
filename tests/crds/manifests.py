"""Manifests that are good, and what makes others of them."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PLURALS = {"DERAsset": "derassets", "Dispatch": "dispatches"}

Manifest = dict[str, Any]

BATTERY: Manifest = {
    "apiVersion": "derops.io/v1alpha1",
    "kind": "DERAsset",
    "metadata": {"name": "battery-7"},
    "spec": {
        "type": "Battery",
        "ratings": {
            "maxInjectionWatts": 10000,
            "maxAbsorptionWatts": 8000,
            "energyCapacityWattHours": 20000,
        },
    },
}
DISPATCH: Manifest = {
    "apiVersion": "derops.io/v1alpha1",
    "kind": "Dispatch",
    "metadata": {"name": "evening-peak"},
    "spec": {
        "assetRef": {"name": "battery-7"},
        "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
        "durationSeconds": 1800,
    },
}


def asset_manifest(
    name: str, *, metadata: Mapping[str, Any] | None = None, **spec: Any
) -> Manifest:
    """Return a battery of 10 kW, with fields of its spec and of its metadata set otherwise."""
    return BATTERY | {
        "metadata": {"name": name, **(metadata or {})},
        "spec": deepcopy(BATTERY["spec"]) | spec,
    }


def dispatch_manifest(
    name: str, asset: str = "battery", *, metadata: Mapping[str, Any] | None = None, **spec: Any
) -> Manifest:
    """Return a dispatch of 5 kW for half an hour, with fields set otherwise."""
    return DISPATCH | {
        "metadata": {"name": name, **(metadata or {})},
        "spec": deepcopy(DISPATCH["spec"]) | {"assetRef": {"name": asset}} | spec,
    }


def merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Manifest:
    """Return a copy of ``base`` with a JSON merge patch applied; None takes a field away."""
    result = deepcopy(dict(base))
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            result[name] = merged(result.get(name, {}), value)
        else:
            result[name] = value
    return result


def crd(kind: str) -> Manifest:
    """Return the definition of a kind as it is in crds/."""
    file = REPOSITORY / "crds" / f"derops.io_{PLURALS[kind]}.yaml"
    document: Manifest = yaml.safe_load(file.read_text(encoding="utf-8"))
    return document


def schema(kind: str) -> Manifest:
    """Return the schema of a kind."""
    found: Manifest = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found
