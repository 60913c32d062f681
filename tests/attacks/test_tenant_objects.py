"""Who may create objects in one namespace, and puts into them whatever the API server lets through.

The operator must start and go on for everybody else; who owns the object must be told on it.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.attacks.tenants import Tenant, certificate_request, signing_request
from tests.crds.manifests import asset_manifest, dispatch_manifest
from tests.e2e.acting import Pilot
from tests.stack import ops
from tests.stack.stack import Stack
from tests.waiting import eventually

_numbers = itertools.count(1)
URI = "spiffe://derops.test/ns/x/derasset/battery"


@pytest.fixture
def tenant(stack: Stack) -> Iterator[Tenant]:
    tenant = Tenant(stack.control_plane, f"poison-{next(_numbers)}")
    yield tenant
    kinds = "certificaterequests,dispatches,derassets"
    stack.kubectl("delete", kinds, "--all", "-n", tenant.namespace, "--timeout=90s")
    stack.kubectl("delete", "namespace", tenant.namespace, "--wait=false")


@pytest.fixture
def neighbour(stack: Stack) -> Iterator[Pilot]:
    with Pilot.created(stack, f"neighbour-{next(_numbers)}") as pilot:
        yield pilot


def dispatch(name: str, **spec: Any) -> dict[str, Any]:
    return dispatch_manifest(name, **{"durationSeconds": 600, **spec})


def asset(name: str, **metadata: Any) -> dict[str, Any]:
    annotations = {"sim.derops.io/agent": "none"}
    ratings = {"maxInjectionWatts": 0, "maxAbsorptionWatts": 8000}
    return asset_manifest(
        name, metadata={"annotations": annotations, **metadata}, type="Load", ratings=ratings
    )


UNTOLD = {
    "a revision of 5,000 digits",
    "annotations of 200 KiB",
    "two thousand owners",
}


def poisons() -> dict[str, dict[str, Any]]:
    """Return objects of a tenant, by what is wrong with each."""
    good, old = signing_request(URI), signing_request(URI, version=1)
    digits = {"cert-manager.io/certificate-revision": "9" * 5000}
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "u"}
    return {
        "a signing request of version 1": certificate_request("old-version", old),
        "a revision of 5,000 digits": certificate_request("digits", good, annotations=digits),
        "annotations of 200 KiB": asset("large", annotations={
            "sim.derops.io/agent": "none", "x": "y" * 200_000,
        }),
        "two thousand owners": certificate_request(
            "owned", good, ownerReferences=[{**owner, "uid": f"u{n}"} for n in range(2000)]
        ),
        "a start in the year 0": dispatch("year-zero", startTime="0000-01-01T00:00:00Z"),
        "an end after the year 9999": dispatch("late", startTime="9999-12-31T23:59:59Z"),
    }  # fmt: skip


def create_deep(tenant: Tenant, levels: int) -> None:
    """Create a Dispatch whose JSON is so many levels deep, where the API server looks at nothing.

    As text, since Python's own encoder ends at a thousand.
    """
    manifest = dispatch("deep")
    manifest["metadata"] |= {"namespace": tenant.namespace, "managedFields": "FIELDS"}
    fields = '{"f:x":' * levels + "{}" + "}" * levels
    text = json.dumps(manifest).replace(
        '"FIELDS"',
        '[{"manager":"me","operation":"Update","apiVersion":"derops.io/v1alpha1",'
        f'"fieldsType":"FieldsV1","fieldsV1":{fields}}}]',
    )
    path = f"/apis/derops.io/v1alpha1/namespaces/{tenant.namespace}/dispatches"
    taken, answer = tenant.kubectl("create", "--raw", path, "-f", "-", stdin=text)
    assert taken, answer[-500:]
    _, stored = tenant.kubectl("get", "--raw", f"{path}/deep")
    assert stored.count("f:x") == levels, "the attack is not what it was"


def events_of(stack: Stack, namespace: str, name: str, reason: str) -> list[dict[str, Any]]:
    answer = stack.kubectl("get", "events.events.k8s.io", "-n", namespace, "-o", "json")
    return [
        each
        for each in json.loads(answer)["items"]
        if (each["regarding"]["name"], each["reason"]) == (name, reason)
    ]


def unreadable(stack: Stack) -> int:
    return int(ops.metric(stack.ops_ports["operator"], "derops_operator_unreadable_objects{"))


def put(tenant: Tenant, objects: dict[str, dict[str, Any]]) -> set[str]:
    """Create all that the API server takes; return the names of those whose owner must be told."""
    told = set()
    for what, manifest in objects.items():
        taken, answer = tenant.create(manifest)
        assert taken or "nvalid" in answer, f"{what}: {answer}"
        if taken and what not in UNTOLD:
            told.add(manifest["metadata"]["name"])
    return told


def assert_works_for(neighbour: Pilot, name: str) -> None:
    limit = {"mode": "LoadLimit", "maxLoadWatts": 5000}
    neighbour.dispatch(name, setpoint=limit, durationSeconds=2)
    status = neighbour.wait_for_phase(name, "Complete")
    assert status["timeline"]["appliedAt"]


def test_poison_does_not_stop_a_running_operator(
    stack: Stack, tenant: Tenant, neighbour: Pilot
) -> None:
    """T21: a tenant creates objects that cannot be read, while the operator runs.

    Each must be counted, and told in an Event on itself; nobody else may notice.
    """
    neighbour.battery()
    told = put(tenant, poisons())
    assert "old-version" in told, "the attack is not what it was"

    for name in told:
        eventually(lambda n=name: events_of(stack, tenant.namespace, n, "Unreadable"), name)  # type: ignore[misc]
    assert unreadable(stack) >= len(told)
    status, text = ops.ask(stack.ops_ports["operator"])
    assert (status, "degraded objects: cannot read" in text) == (200, True)
    assert_works_for(neighbour, "during")


def test_poison_does_not_stop_the_start_of_the_operator(
    stack: Stack, tenant: Tenant, neighbour: Pilot
) -> None:
    """T22: as T21, and the operator starts while they are there.

    It must get ready, be alive, serve everybody else, and be well once they are deleted.
    """
    neighbour.battery()
    neighbour.dispatch("through", durationSeconds=12)
    neighbour.wait_for_phase("through", "Active")
    told = put(tenant, poisons())
    stack.kill("operator")
    stack.restart("operator")

    assert ops.ask(stack.ops_ports["operator"], "livez")[0] == 200
    assert unreadable(stack) >= len(told)
    assert_works_for(neighbour, "after-the-start")
    assert neighbour.wait_for_phase("through", "Complete")["execution"]["interruptions"] == 0

    tenant.kubectl("delete", "certificaterequests,dispatches,derassets", "--all")
    eventually(lambda: unreadable(stack) == 0, "everything to be well again")
    status, text = ops.ask(stack.ops_ports["operator"])
    assert status
    assert "degraded objects" not in text


def test_what_is_created_anew_under_a_poisoned_name_is_worked_on(
    stack: Stack, tenant: Tenant
) -> None:
    """T23: a tenant replaces a request that cannot be read by a good one of its name.

    The poisoned one must be told; nothing of it may stick to the name.
    """
    bad = certificate_request("same", signing_request(URI, version=1))
    assert tenant.create(bad)[0]
    eventually(lambda: events_of(stack, tenant.namespace, "same", "Unreadable"), "it to be told")
    before = unreadable(stack)

    assert tenant.kubectl("delete", "certificaterequest", "same")[0]
    assert tenant.create(certificate_request("same", signing_request(URI)))[0]

    eventually(lambda: unreadable(stack) == before - 1, "the good one to count as good")


def test_a_dispatch_that_cannot_be_read_runs_on_through_a_start_of_everything(
    stack: Stack, neighbour: Pilot
) -> None:
    """T24: whoever may write the status of a running Dispatch writes an instant that is none.

    A snapshot without the dispatch would revert the device. Operator and gateway start meanwhile:
    the agent must run it to its end, the owner must be told, and status must follow once mended.
    """
    neighbour.battery()
    neighbour.dispatch("running", durationSeconds=45)
    before = neighbour.wait_for_phase("running", "Active")["timeline"]["submittedAt"]
    patch_submitted(neighbour, "running", "0000-01-01T00:00:00Z")
    eventually(lambda: events_of(stack, neighbour.namespace, "running", "Unreadable"), "the Event")

    for part in ("operator", "gateway"):
        stack.kill(part)
    stack.restart("gateway")
    stack.restart("operator")
    neighbour.wait_for_condition("derasset", "battery", "Connected", "True")
    neighbour.dispatch("another", setpoint={"mode": "LoadLimit", "maxLoadWatts": 5000})
    neighbour.wait_for_phase("another", "Active", "Complete")
    assert neighbour.powers_written() == [5000], "the device was reverted"

    patch_submitted(neighbour, "running", before)
    status = neighbour.wait_for_phase("running", "Complete")
    assert (status["execution"]["interruptions"], neighbour.powers_written()) == (0, [5000, 0])


def patch_submitted(pilot: Pilot, name: str, instant: str) -> None:
    patch = {"status": {"timeline": {"submittedAt": instant}}}
    pilot.stack.kubectl(
        "patch", "dispatch", name, "-n", pilot.namespace, "--subresource=status", "--type=merge",
        "-p", json.dumps(patch),
    )  # fmt: skip


def test_an_object_of_any_depth_is_read_with_all_others(
    stack: Stack, tenant: Tenant, neighbour: Pilot
) -> None:
    """T25: a tenant creates an object so deep that a parser ends with it, and its whole list.

    The operator must work on and start for everybody, and on the object as on any other.
    """
    neighbour.battery()
    create_deep(tenant, 9000)
    assert_works_for(neighbour, "beside")

    stack.kill("operator")
    stack.restart("operator")

    assert_works_for(neighbour, "after")
    eventually(
        lambda: tenant.get("dispatch", "deep")["status"].get("reason") == "AssetNotFound",
        "the operator's word on it",
    )
