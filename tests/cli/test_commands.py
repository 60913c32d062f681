"""The real script on a real API server, as callers with rights and without."""

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.cli import clusters
from tests.cli.clusters import OTHER, SYSTEM, TENANT, patient
from tests.cli.seeing import CONNECTED, FLOWING, OFFLINE, condition
from tests.crds.manifests import dispatch_manifest
from tests.stack.controlplane import ControlPlane

from derops_cli.deadline import Deadline
from derops_cli.kubectl import Flags, Kubectl, utc_now

DEVICE = condition("DataFlowing", "False", "DeviceSilent", "no sample since 02:11", 90)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        clusters.prepare(plane)
        plane.apply(clusters.fresh_config_map())
        clusters.make_asset(plane, "battery-7", DEVICE, CONNECTED)
        clusters.make_asset(plane, "battery-8", FLOWING, CONNECTED)
        clusters.make_asset(plane, "solar-1", FLOWING, CONNECTED, namespace=OTHER)
        clusters.make_asset(plane, "battery-8", OFFLINE, namespace=OTHER)
        yield plane


@pytest.fixture(scope="module")
def admin(plane: ControlPlane) -> str:
    return plane.kubeconfig


@pytest.fixture(scope="module")
def tenant(plane: ControlPlane) -> str:
    """Return the kubeconfig of somebody who may look at one namespace, and at nothing else."""
    return clusters.make_caller(plane, "tenant", ("derops-viewer", TENANT))


@pytest.fixture(scope="module")
def nobody(plane: ControlPlane) -> str:
    return clusters.make_caller(plane, "nobody")


@pytest.fixture(autouse=True)
def _operator_writes(plane: ControlPlane) -> None:
    plane.apply(clusters.fresh_config_map())


def test_a_broken_link_is_named_with_its_evidence_and_is_1(admin: str) -> None:
    done = patient("diagnose", "battery-7", "-n", TENANT, kubeconfig=admin)

    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("battery-7 in pilot-north: broken at Device: DeviceSilent\n")
    assert "-> " in done.out
    assert "no sample since 02:11" in done.out
    assert f"kubectl describe derasset battery-7 -n {TENANT}" in done.out
    assert "runbook: docs/runbooks/" in done.out
    assert "\x1b" not in done.out


def test_what_flows_is_0(admin: str) -> None:
    done = patient("diagnose", "battery-8", "-n", TENANT, kubeconfig=admin)

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("battery-8 in pilot-north: data flows\n")


def test_the_json_has_the_shape_that_is_promised(admin: str) -> None:
    done = patient("diagnose", "battery-7", "-n", TENANT, "-o", "json", kubeconfig=admin)

    found = done.json
    assert done.code == 1
    assert set(found) == {
        "apiVersion", "kind", "asset", "namespace", "verdict", "firstBroken", "reason", "message",
        "operator", "links", "causes", "runbook", "notes", "missing",
    }  # fmt: skip
    assert (found["firstBroken"], found["reason"]) == ("Device", "DeviceSilent")
    assert [each["name"] for each in found["links"]][-1] == "Fresh"
    assert found["missing"] == []
    age_seconds = found["operator"]["evidence"][0]["ageSeconds"]
    assert -2 <= age_seconds < 100


@pytest.mark.parametrize(
    ("faults", "link", "reason"),
    [
        ({"DatabaseStores": "DatabaseFull"}, "Database", "DatabaseFull"),
        (
            {"LogTakesData": "LogFull", "WriterFollows": "WriterSilent"},
            "Writer", "WriterSilent",
        ),
    ],
)  # fmt: skip
def test_what_is_broken_for_all_is_named_for_the_installation(
    plane: ControlPlane, admin: str, faults: dict[str, Any], link: str, reason: str
) -> None:
    plane.apply(clusters.fresh_config_map(**faults))

    done = patient("diagnose", kubeconfig=admin)

    assert done.code == 1
    assert done.out.startswith(f"installation: broken at {link}: {reason}\n")
    assert "4 assets in all namespaces" in done.out


def test_a_silent_operator_is_the_broken_link(plane: ControlPlane, admin: str) -> None:
    plane.apply(clusters.fresh_config_map(age_seconds=400))

    done = patient("diagnose", "battery-7", "-n", TENANT, kubeconfig=admin)

    assert done.code == 1
    assert done.out.startswith("battery-7 in pilot-north: broken at Operator: OperatorSilent\n")


def test_who_may_see_only_a_namespace_is_told_which_right_is_missing(tenant: str) -> None:
    done = patient("diagnose", "battery-7", "-n", TENANT, "-o", "json", kubeconfig=tenant)

    found = done.json
    assert (done.code, found["firstBroken"]) == (1, "Device")
    rights = [each["right"] for each in found["missing"]]
    assert {"verb": "get", "resource": "configmaps", "namespace": SYSTEM} in rights
    assert {"verb": "list", "resource": "events", "namespace": TENANT} in rights
    writer = next(each for each in found["links"] if each["name"] == "Writer")
    assert writer["state"] == "NotLookedAt"


def test_with_the_role_for_it_what_is_broken_for_all_is_seen(
    plane: ControlPlane,
) -> None:
    config = clusters.make_caller(plane, "on-call", ("derops-viewer", TENANT))
    plane.kubectl(
        "create", "rolebinding", "on-call", "-n", SYSTEM, "--role=derops-installation-viewer",
        "--serviceaccount=callers:on-call",
    )  # fmt: skip

    done = patient("diagnose", "battery-8", "-n", TENANT, kubeconfig=config)

    assert done.code == 0
    assert done.out.startswith("battery-8 in pilot-north: data flows\n")


def test_what_holds_as_far_as_can_be_seen_is_0_and_says_so(tenant: str) -> None:
    done = patient("diagnose", "battery-8", "-n", TENANT, kubeconfig=tenant)

    assert done.code == 0
    assert "no broken link among those looked at" in done.out
    assert "you may not get configmaps in namespace derops-system" in done.out


def test_without_any_right_nothing_is_judged(nobody: str) -> None:
    asset = patient("diagnose", "battery-7", "-n", TENANT, kubeconfig=nobody)
    for_all = patient("diagnose", kubeconfig=nobody)

    assert (asset.code, asset.out) == (4, "")
    assert asset.err == (
        "kubectl derops: could not look: "
        f"you may not get derassets.derops.io in namespace {TENANT}\n"
    )
    assert for_all.code == 4
    assert "nothing could be judged" in for_all.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("batery-7", "-n", TENANT), "near names: battery-7, battery-8"),
        (("solar-1", "-n", TENANT), f"there is one in: {OTHER}"),
        (("battery-8",), f"there is one in: {TENANT}, {OTHER}"),
        (("battery-7", "--dispatch", "x"), "not both"),
        (("battery-7", "-o", "yaml"), "it is text or json"),
        (("battery-7", "--timeout", "0"), "1 to 600 seconds"),
        (("battery-7", "--api-url", "https://x"), "need a token"),
        (("battery-7", "--token", "x", "--login"), "choose one"),
        (("battery-7", "--token", "@/nowhere"), "/nowhere cannot be read"),
        (("battery-7", "--token", "a b"), "what no token has"),
        (("battery-7", "--login", "--api-url", "http://x"), "it is https://HOST"),
        (("battery-7", "--login", "--api-url", "https://a:b@x"), "it is https://HOST"),
        (("battery-7", "--login", "--api-ca", "/nowhere"), "--api-ca: /nowhere"),
        (("battery-7", "--as-service-account", "trading"), "NAMESPACE/NAME"),
        (("--dispatch", "nothing", "-n", TENANT), "no Dispatch nothing"),
    ],
)
def test_what_makes_no_sense_is_2_and_one_line(
    admin: str, arguments: tuple[str, ...], says: str
) -> None:
    done = clusters.run("diagnose", *arguments, kubeconfig=admin)

    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith("kubectl derops: ")


@pytest.mark.parametrize("arguments", [("--no-such",), ("no-such-command",), ("timeline",)])
def test_wrong_arguments_are_2_with_usage(admin: str, arguments: tuple[str, ...]) -> None:
    done = clusters.run(*arguments, kubeconfig=admin)

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: kubectl derops")
    assert "Traceback" not in done.err


def test_without_a_namespace_the_only_asset_of_the_name_is_found(admin: str) -> None:
    done = patient("diagnose", "solar-1", kubeconfig=admin)

    assert done.code == 0
    assert done.out.startswith(f"solar-1 in {OTHER}: data flows")


def test_kubectl_finds_it_as_its_plugin(admin: str) -> None:
    path = f"{clusters.PROGRAM.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["kubectl", "derops", "diagnose", "battery-8", "-n", TENANT, "--timeout=60"],
        env=os.environ | {"KUBECONFIG": admin, "PATH": path},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert "data flows" in done.stdout


def test_flags_of_kubectl_are_handed_on_and_stand_in_the_commands(admin: str) -> None:
    flags = ("--as=system:serviceaccount:callers:tenant", "--context=derops")
    done = patient("diagnose", "battery-7", "-n", TENANT, *flags, kubeconfig=admin)
    wrong = clusters.run("diagnose", "--context=nowhere", kubeconfig=admin)

    assert done.code == 1
    assert "you may not get configmaps" in done.out
    assert "kubectl --context=derops --as=system:serviceaccount:callers:tenant describe" in done.out
    assert wrong.code == 4
    assert 'context "nowhere" does not exist' in wrong.out + wrong.err


def test_an_api_server_that_is_away_is_4_within_the_time(admin: str, tmp_path: Path) -> None:
    config = json.loads(Path(admin).read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "config").write_text(json.dumps(config))

    done = clusters.run("diagnose", "battery-7", "-n", TENANT, kubeconfig=str(tmp_path / "config"))

    assert (done.code, done.out) == (4, "")
    assert "refused" in done.err
    assert done.err.count("\n") == 1


def test_without_kubectl_it_is_4(admin: str) -> None:
    done = clusters.run("diagnose", kubeconfig=admin, environment={"PATH": "/nowhere"})

    assert (done.code, done.err) == (
        4, "kubectl derops: could not look: there is no kubectl on PATH: install it first\n"
    )  # fmt: skip


def test_a_dispatch_that_waits_for_its_agent_says_so(plane: ControlPlane, admin: str) -> None:
    order = dispatch_manifest(
        "evening-peak", "battery-8", metadata={"namespace": OTHER}, durationSeconds=1800
    )
    plane.kubectl("create", "-f", "-", stdin=json.dumps(order))
    status = {
        "phase": "Submitted", "reason": "Validated", "message": "within limits",
        "observedGeneration": 1,
    }  # fmt: skip
    plane.kubectl(
        "patch", "dispatch", "evening-peak", "-n", OTHER, "--subresource=status",
        "--type=merge", "-p", json.dumps({"status": status}),
    )  # fmt: skip

    done = patient("diagnose", "--dispatch", "evening-peak", kubeconfig=admin)
    as_json = patient("diagnose", "--dispatch", "evening-peak", "-o", "json", kubeconfig=admin)
    counted = patient("status", kubeconfig=admin)
    story = patient("timeline", "battery-8", "-n", OTHER, kubeconfig=admin)

    assert done.code == 1
    assert "-> stopped at: Stream" in done.out
    assert "the agent of its asset has no stream" in done.out
    assert as_json.json["stoppedAt"] == "Stream"
    assert "Submitted" in counted.out
    assert "Connected became False" in story.out


def test_status_counts_and_names_the_worst_namespace(admin: str, tenant: str) -> None:
    done = patient("status", kubeconfig=admin)
    own = patient("status", "-n", TENANT, kubeconfig=tenant)

    assert done.code == 0
    assert "DeviceSilent" in done.out
    assert "1 of 2" in done.out
    assert own.code == 4  # nothing of the installation
    assert f"2 assets in {TENANT}" in own.out


def test_how_far_a_clock_is_off_the_api_servers_is_seen(admin: str) -> None:
    kubectl = Kubectl(Flags(kubeconfig=admin), Deadline(60))
    later = utc_now() + timedelta(seconds=600)

    ahead_seconds = kubectl.clock_ahead_seconds(later)

    assert ahead_seconds is not None
    assert 540 < ahead_seconds < 602


def test_it_and_its_calls_compute_for_less_than_five_seconds(admin: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    done = patient("diagnose", "battery-8", "-n", TENANT, kubeconfig=admin)

    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.code == 0
    assert 0 < seconds < 5, "what another program does meanwhile is not counted"


@pytest.mark.parametrize("command", ["", "diagnose", "status", "timeline", "report"])
def test_help_is_plain_and_names_the_plugin(admin: str, command: str) -> None:
    done = clusters.run(*command.split(), "--help", kubeconfig=admin)

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: {' '.join(['kubectl derops', *command.split()])} ")
    assert done.out.isascii()


def test_its_version_is_that_of_the_package(admin: str) -> None:
    done = clusters.run("--version", kubeconfig=admin)

    assert (done.code, done.out) == (0, "kubectl-derops 0.1.0\n")
