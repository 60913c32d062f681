"""Who hides secrets where a support bundle, or a terminal, might show them."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli import clusters
from tests.cli.clusters import SYSTEM, TENANT, patient
from tests.cli.seeing import CONNECTED, condition, manifest
from tests.stack.controlplane import ControlPlane

SECRETS = {
    "userinfo": "Xa1-userinfo-secret",
    "query": "Xa2-query-secret",
    "annotation": "Xa3-annotation-secret",
    "label": "Xa4-label-secret",
    "event": "Xa5-event-secret",
    "jwt": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJYYTYifQ.c2lnbmF0dXJl",
    "pem": "MIIEvXa7keyMaterial",
    "environment": "Xa8-environment-secret",
    "config map": "Xa9-config-map-secret",
    "argument": "Xa10-argument-secret",
    "dispatch": "Xa11-dispatch-secret",
    "installation": "Xa12-installation-secret",
    "managed field": "Xa13-manager-secret",
    "extra status": "Xa14-firmware-secret",
}
DEVICE_WORDS = (
    f"GET http://admin:{SECRETS['userinfo']}@meter/x?token={SECRETS['query']} gave 401; "
    f"Authorization: Bearer {SECRETS['jwt']}; "
    f"-----BEGIN PRIVATE KEY-----\n{SECRETS['pem']}\n-----END PRIVATE KEY-----"
)


@pytest.fixture(scope="module")
def planted() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        clusters.prepare(plane)
        config_map = clusters.fresh_config_map(DatabaseStores="DatabaseRefuses")
        status = json.loads(config_map["data"]["status.json"])
        url = f"postgresql://derops_writer:{SECRETS['installation']}@db/derops"
        status["conditions"][-1]["message"] = f"{url} refuses us"
        config_map["data"] = {"status.json": json.dumps(status), "other": SECRETS["config map"]}
        plane.apply(config_map)
        _plant_asset(plane)
        _plant_dispatch(plane)
        _plant_events(plane)
        for namespace, labels in (
            (TENANT, {}),
            (SYSTEM, {"app.kubernetes.io/name": "derops"}),
        ):
            plane.kubectl("create", "-f", "-", stdin=json.dumps(_pod(namespace, labels)))
        yield plane


def _plant_asset(plane: ControlPlane) -> None:
    clusters.make_asset(
        plane, "battery-7",
        condition("DataFlowing", "False", "DeviceSilent", DEVICE_WORDS),
        condition("DeviceSilent", "True", "NoAnswer", DEVICE_WORDS),
        CONNECTED,
    )  # fmt: skip
    firmware = {"modes": [], "firmware": f"v1 password={SECRETS['extra status']}"}
    plane.kubectl(
        "patch", "derasset", "battery-7", "-n", TENANT, "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": {"capability": firmware}}),
        f"--field-manager={SECRETS['managed field']}",
    )  # fmt: skip
    plane.kubectl(
        "annotate", "derasset", "battery-7", "-n", TENANT, f"note={SECRETS['annotation']}"
    )
    plane.kubectl("label", "derasset", "battery-7", "-n", TENANT, f"note={SECRETS['label']}")


def _plant_dispatch(plane: ControlPlane) -> None:
    order = {
        "apiVersion": "derops.io/v1alpha1",
        "kind": "Dispatch",
        "metadata": {
            "name": "evening-peak",
            "namespace": TENANT,
            "annotations": {"note": SECRETS["annotation"]},
        },
        "spec": {
            "assetRef": {"name": "battery-7"},
            "setpoint": {"mode": "CeaseToEnergize"},
            "durationSeconds": 5,
        },
    }
    plane.kubectl("create", "-f", "-", stdin=json.dumps(order))
    status = {
        "phase": "Failed",
        "reason": "DeviceWriteFailed",
        "message": f"the device answers: secret={SECRETS['dispatch']}",
        "createdBy": SECRETS["dispatch"],
        "completionTime": "2026-12-01T00:00:00Z",
        "observedGeneration": 1,
    }
    plane.kubectl(
        "patch", "dispatch", "evening-peak", "-n", TENANT, "--subresource=status",
        "--type=merge", "-p", json.dumps({"status": status}),
    )  # fmt: skip


def _plant_events(plane: ControlPlane) -> None:
    for number, reporter in enumerate(("derops.io/operator", "evil.example/x")):
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"planted-{number}", "namespace": TENANT},
            "eventTime": "2026-12-01T00:00:00.000000Z",
            "reportingController": reporter,
            "reportingInstance": "x",
            "action": "Manage",
            "type": "Warning",
            "reason": "NoAnswer",
            "note": f"api_key={SECRETS['event']} {DEVICE_WORDS}",
            "regarding": {"kind": "DERAsset", "namespace": TENANT, "name": "battery-7"},
        }
        plane.kubectl("create", "-f", "-", stdin=json.dumps(event))


def _pod(namespace: str, labels: dict[str, str]) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "foreign",
            "namespace": namespace,
            "labels": labels,
            "annotations": {"note": SECRETS["annotation"]},
        },
        "spec": {
            "serviceAccountName": "default",
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "main",
                    "image": "busybox",
                    "args": ["--password", SECRETS["argument"]],
                    "env": [{"name": "DATABASE_URL", "value": SECRETS["environment"]}],
                }
            ],
        },
    }


def test_no_secret_gets_into_a_support_bundle(planted: ControlPlane, tmp_path: Path) -> None:
    """R184: secrets in URLs, annotations, Events, words of devices, and variables of pods."""
    file = tmp_path / "report.tar.gz"

    done = patient("report", f"--file={file}", kubeconfig=planted.kubeconfig)

    assert (done.code, done.err) == (0, "")
    with tarfile.open(file) as archive:
        files = {
            Path(each.name).name: archive.extractfile(each).read().decode()  # type: ignore[union-attr]
            for each in archive.getmembers()
        }
    assert file.stat().st_mode & 0o077 == 0
    assert set(files) == {
        "assets.json", "diagnosis.json", "dispatches.json", "events.json", "installation.json",
        "manifest.json", "versions.json", "workloads.json",
    }  # fmt: skip
    everything = "\n".join(files.values()) + done.out
    assert {name for name, secret in SECRETS.items() if secret in everything} == set()
    # What helps is there all the same.
    assert "gave 401" in files["assets.json"]
    assert "refuses us" in files["installation.json"]
    assert "DeviceWriteFailed" in files["dispatches.json"]
    assert "NoAnswer" in files["events.json"]
    assert "foreign" in files["workloads.json"]
    listed = json.loads(files["manifest.json"])
    assert {each["name"] for each in listed["files"]} == set(files) - {"manifest.json"}


def test_a_bundle_overwrites_nothing(planted: ControlPlane, tmp_path: Path) -> None:
    """R185: a link to another's file is put where the bundle is to go."""
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "report.tar.gz").symlink_to(other)

    done = patient("report", f"--file={tmp_path}/report.tar.gz", kubeconfig=planted.kubeconfig)

    assert (done.code, done.out) == (2, "")
    assert other.read_text() == "mine"


@pytest.mark.parametrize("command", ["diagnose evil", "timeline evil", "status"])
def test_the_words_of_a_device_control_no_terminal(planted: ControlPlane, command: str) -> None:
    """R186: a device or agent says what would rewrite the terminal of who looks."""
    escape = "\x1b]0;owned\x07\x1b[2Jit flows\r\u202e"
    if command == "diagnose evil":
        full = manifest(
            condition("DataFlowing", "False", "DeviceSilent", escape),
            condition("TelemetryDegraded", "True", "BadPoints", escape),
        )
        full["metadata"] = {"name": "evil", "namespace": TENANT}
        planted.kubectl("create", "-f", "-", stdin=json.dumps(full))
        planted.kubectl(
            "patch", "derasset", "evil", "-n", TENANT, "--subresource=status", "--type=merge",
            "-p", json.dumps({"status": full["status"]}),
        )  # fmt: skip

    done = patient(*command.split(), "-n", TENANT, kubeconfig=planted.kubeconfig)

    assert done.out
    assert all(each.isprintable() or each == "\n" for each in done.out)
