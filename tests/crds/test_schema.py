"""What holds for every field of the CRDs, and how the API server and kubectl present them."""

from collections.abc import Iterator

import pytest
from tests.crds.api import Api
from tests.crds.manifests import BATTERY, DISPATCH, PLURALS, Manifest, crd, merged, schema
from tests.stack.controlplane import ControlPlane

KINDS = sorted(PLURALS)
UNITS = {
    "Watts": "in W",
    "WattsPerSecond": "in W/s",
    "WattHours": "in Wh",
    "Seconds": "in s",
    "Milliseconds": "in ms",
    "Percent": "in percent",
}


def nodes(node: Manifest, path: str) -> Iterator[tuple[str, Manifest]]:
    """Yield path and schema of every field; metadata is the API server's own."""
    for name, inner in node.get("properties", {}).items():
        if (path, name) != ("", "metadata"):
            yield f"{path}.{name}", inner
            yield from nodes(inner, f"{path}.{name}")
    if "items" in node:
        yield f"{path}[]", node["items"]
        yield from nodes(node["items"], f"{path}[]")


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str) -> None:
    bare = [
        path
        for path, field in nodes(schema(kind), "")
        if not path.endswith("[]") and not field.get("description")
    ]

    assert bare == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_names_the_unit_of_its_field(kind: str) -> None:
    silent = [
        path
        for path, field in nodes(schema(kind), "")
        for suffix, words in UNITS.items()
        if path.endswith(suffix) and words not in field["description"]
    ]

    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_bounded(kind: str) -> None:
    loose = []
    for path, field in nodes(schema(kind), ""):
        if path in (".apiVersion", ".kind"):
            continue
        if field["type"] == "string" and not {"maxLength", "enum"} & field.keys():
            loose.append(path)
        if field["type"] == "array" and not {"maxItems", "x-kubernetes-list-type"} <= field.keys():
            loose.append(path)
        in_spec = path.startswith(".spec")
        if in_spec and field["type"] == "integer" and not {"minimum", "maximum"} <= field.keys():
            loose.append(path)
        if "x-kubernetes-preserve-unknown-fields" in field or "additionalProperties" in field:
            loose.append(path)

    assert loose == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_expression_has_a_message_and_a_field(kind: str) -> None:
    root = schema(kind)
    rules = [
        rule
        for node in [root, *(node for _, node in nodes(root, ""))]
        for rule in node.get("x-kubernetes-validations", [])
    ]

    assert rules
    assert [rule for rule in rules if not rule.get("message") or not rule.get("fieldPath")] == []


def test_a_new_asset_has_its_defaults(api: Api) -> None:
    stored = api.create(BATTERY)

    assert stored["spec"] == BATTERY["spec"] | {
        "limits": {"maxDispatchDurationSeconds": 86400, "onExceed": "Reject"},
        "fallback": {"onCommsLoss": "Continue", "onRestart": "Resume"},
        "identity": {"mode": "Managed", "certificateDurationSeconds": 2592000},
        "telemetry": {"intervalSeconds": 10},
        "operatingState": "InService",
    }
    assert stored["status"] == {"observedGeneration": -1}


def test_a_new_dispatch_has_its_defaults(api: Api) -> None:
    stored = api.create(DISPATCH)

    assert stored["spec"] == DISPATCH["spec"] | {
        "randomizeStartSeconds": 0,
        "latePolicy": "KeepEnd",
        "reportDeadlineSeconds": 900,
        "primacy": 100,
        "verify": "Report",
        "desiredState": "Active",
    }
    assert stored["status"] == {"observedGeneration": -1, "phase": "Submitted"}


def test_a_status_in_the_manifest_of_a_new_object_is_not_believed(api: Api) -> None:
    claim = {"phase": "Complete", "completionTime": "2030-12-01T18:30:00Z", "observedGeneration": 1}

    stored = api.create(merged(DISPATCH, {"status": claim}))

    assert stored["status"] == {"observedGeneration": -1, "phase": "Submitted"}


def test_a_change_of_the_resource_leaves_its_status(api: Api) -> None:
    stored = api.create(DISPATCH)

    changed = api.patch(
        stored, {"spec": {"desiredState": "Cancelled"}, "status": {"phase": "Active"}}
    )

    assert changed["status"]["phase"] == "Submitted"
    assert changed["metadata"]["generation"] == 2


@pytest.mark.parametrize(
    "selector",
    ["spec.assetRef.name=battery-7", "spec.desiredState=Active", "status.phase=Submitted"],
)
def test_dispatches_are_found_by_a_field(api: Api, selector: str) -> None:
    api.create(DISPATCH)
    other = merged(
        DISPATCH,
        {
            "metadata": {"name": "other"},
            "spec": {"assetRef": {"name": "battery-8"}, "desiredState": "Cancelled"},
        },
    )
    api.patch_status(api.create(other), {"phase": "Acked"})

    assert api.list("Dispatch", selector) == ["evening-peak"]
    assert len(api.list("Dispatch", "metadata.namespace=" + api.namespace)) == 2


@pytest.mark.parametrize("selector", ["spec.type=Battery", "spec.operatingState=InService"])
def test_assets_are_found_by_a_field(api: Api, selector: str) -> None:
    api.create(BATTERY)
    other = {
        "metadata": {"name": "solar"},
        "spec": {
            "type": "Solar",
            "operatingState": "OutOfService",
            "ratings": {"energyCapacityWattHours": None},
        },
    }
    api.create(merged(BATTERY, other))

    assert api.list("DERAsset", selector) == ["battery-7"]


def columns(kind: str, priority: int) -> list[str]:
    version = crd(kind)["spec"]["versions"][0]
    return [
        column["name"]
        for column in version["additionalPrinterColumns"]
        if column.get("priority", 0) <= priority
    ]


@pytest.mark.parametrize(("kind", "word"), [("DERAsset", "dera"), ("Dispatch", "dsp")])
def test_kubectl_shows_the_columns_by_the_short_name(
    api: Api, kube: ControlPlane, kind: str, word: str
) -> None:
    api.create(BATTERY if kind == "DERAsset" else DISPATCH)

    plain = kube.kubectl("get", word, "-n", api.namespace)
    wide = kube.kubectl("get", word, "-n", api.namespace, "-o", "wide")

    assert plain.split("\n")[0].split() == ["NAME", *map(str.upper, columns(kind, 0))]
    assert wide.split("\n")[0].split() == ["NAME", *map(str.upper, columns(kind, 1))]


def test_kubectl_shows_both_kinds_by_their_category(api: Api, kube: ControlPlane) -> None:
    api.create(BATTERY)
    api.create(DISPATCH)

    shown = kube.kubectl("get", "der", "-n", api.namespace, "-o", "name").split()

    assert shown == ["derasset.derops.io/battery-7", "dispatch.derops.io/evening-peak"]


def test_kubectl_explains_unit_and_sign(kube: ControlPlane) -> None:
    text = kube.kubectl("explain", "dispatch.spec.setpoint.activePowerWatts")

    assert "in W; positive = into the grid, negative = from the grid" in " ".join(text.split())
