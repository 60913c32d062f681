"""Attacks of a dispatch author: who may create and change Dispatches in one namespace, no more.

What a dispatch may ask of a device is bounded by the operator and again by the agent, see
docs/concepts/safety.md; here is what the API server itself refuses.
"""

import itertools
import json
from dataclasses import dataclass

import pytest
from tests.crds.manifests import BATTERY, DISPATCH, Manifest, merged
from tests.stack.controlplane import ControlPlane
from tests.stack.processes import StackError

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Author:
    """May write Dispatches in ``namespace``, which has an asset, as ``other`` has."""

    kube: ControlPlane
    namespace: str
    other: str

    def kubectl(self, *arguments: str, namespace: str = "", stdin: str | None = None) -> str:
        who = f"--as=system:serviceaccount:{self.namespace}:author"
        where = f"--namespace={namespace or self.namespace}"
        return self.kube.kubectl(*arguments, who, where, stdin=stdin)

    def create(self, manifest: Manifest, namespace: str = "") -> Manifest:
        answer = self.kubectl(
            "create", "-f", "-", "-o", "json", namespace=namespace, stdin=json.dumps(manifest)
        )
        created: Manifest = json.loads(answer)
        return created

    def patch(self, what: str, patch: Manifest, *arguments: str, namespace: str = "") -> str:
        return self.kubectl(
            "patch", *what.split(), "--type=merge", f"--patch={json.dumps(patch)}", *arguments,
            namespace=namespace,
        )  # fmt: skip


@pytest.fixture
def author(kube: ControlPlane) -> Author:
    number = next(_numbers)
    found = Author(kube, f"author-{number}", f"author-other-{number}")
    group = "rbac.authorization.k8s.io"
    for namespace in (found.namespace, found.other):
        kube.kubectl("create", "namespace", namespace)
        kube.apply(merged(BATTERY, {"metadata": {"namespace": namespace}}))
    metadata = {"name": "author", "namespace": found.namespace}
    rule = {
        "apiGroups": ["derops.io"],
        "resources": ["dispatches"],
        "verbs": ["create", "get", "list", "watch", "patch", "update"],
    }
    kube.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "author"},
            "subjects": [{"kind": "ServiceAccount", **metadata}],
        },
    )
    return found


def test_a_dispatch_that_is_good_is_taken(author: Author) -> None:
    """The undisturbed case: without it the refusals below would prove nothing."""
    assert author.create(DISPATCH)["metadata"]["namespace"] == author.namespace


def test_an_order_in_another_namespace_is_refused(author: Author) -> None:
    """D1: an author orders in another tenant's namespace, by path or by reference."""
    with pytest.raises(StackError, match="Forbidden"):
        author.create(DISPATCH, namespace=author.other)
    for reference, refusal in (
        ({"namespace": author.other}, "unknown field"),
        ({"name": f"{author.other}/battery-7"}, r"spec\.assetRef\.name"),
    ):
        foreign = merged(DISPATCH, {"spec": {"assetRef": reference}})
        with pytest.raises(StackError, match=refusal):
            author.create(foreign)


def test_what_was_ordered_stays_what_was_ordered(author: Author) -> None:
    """D2: an author changes an order after it was checked."""
    author.create(DISPATCH)

    for change in (
        {"setpoint": {"activePowerWatts": 9001}},
        {"durationSeconds": 604800},
        {"assetRef": {"name": "battery-8"}},
        {"primacy": 0},
    ):
        with pytest.raises(StackError, match="immutable"):
            author.patch("dispatch evening-peak", {"spec": change})


def test_an_author_writes_no_status(author: Author) -> None:
    """D3: an author says of an order what he likes: that it ended, or was applied."""
    status = {"phase": "Complete", "reason": "WindowEnded"}

    created = author.create(merged(DISPATCH, {"status": status}))

    assert created["status"]["phase"] == "Submitted"  # the default of the definition
    with pytest.raises(StackError, match="Forbidden"):
        author.patch("dispatch evening-peak", {"status": status}, "--subresource=status")
    author.patch("dispatch evening-peak", {"status": status})
    stored = json.loads(author.kubectl("get", "dispatch", "evening-peak", "-o", "json"))
    assert stored["status"]["phase"] == "Submitted"


def test_an_author_raises_no_limit(author: Author) -> None:
    """D4: an author lifts what bounds his orders: limits, fallback, the state of the asset."""
    for change in (
        {"limits": {"maxInjectionWatts": 10**12}},
        {"fallback": {"activePowerWatts": 9001}},
        {"operatingState": "OutOfService"},
    ):
        for namespace in (author.namespace, author.other):
            with pytest.raises(StackError, match="Forbidden"):
                author.patch("derasset battery-7", {"spec": change}, namespace=namespace)


def test_an_author_touches_no_identity(author: Author) -> None:
    """D5: an author asks for an identity, or reads one."""
    for verb, resource in (
        ("create", "certificates.cert-manager.io"),
        ("create", "certificaterequests.cert-manager.io"),
        ("get", "secrets"),
        ("patch", "derassets.derops.io"),
        ("delete", "dispatches.derops.io"),
    ):
        with pytest.raises(StackError):  # can-i answers no by its exit code
            author.kubectl("auth", "can-i", verb, resource)
