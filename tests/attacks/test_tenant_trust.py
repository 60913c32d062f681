"""Attacker: whoever has one namespace, and what a GitOps tool with all rights creates for them.

They want agents to trust another server, or the gateway another agent. That what is deleted is
healed, ``tests/e2e/test_authorities.py`` shows; what a running operator believes,
``tests/operator/test_distribution.py``.
"""

import json
from typing import Any

import pytest
from tests.attacks.cluster import GITOPS, TENANT, Caller, Cluster, certificate, cluster, issuer_ref
from tests.stack.identities import AGENT_CA, NAMESPACE, SERVER_CA
from tests.stack.processes import StackError

from derops_operator.trust.config_maps import wanted_config_map

__all__ = ["cluster"]


@pytest.fixture(params=["tenant", "gitops"])
def attacker(cluster: Cluster, request: pytest.FixtureRequest) -> Caller:
    """Return in turn the tenant's account and that of the tool that applies what tenants write."""
    return cluster.callers[request.param]


@pytest.fixture
def kept(cluster: Cluster) -> str:
    """The ConfigMap as the operator wrote it; return what it holds."""
    cluster.operator.kubectl(
        "apply", "--server-side", "--field-manager=derops-operator", "--force-conflicts", "-f", "-",
        stdin=json.dumps(wanted_config_map(TENANT, SERVER_CA, "the operator's")),
    )  # fmt: skip
    return held(cluster)


def held(cluster: Cluster, namespace: str = TENANT, name: str = SERVER_CA) -> str:
    return cluster.control_plane.kubectl(
        "get", "configmap", name, "-n", namespace, "-o", "jsonpath={.data}", "--ignore-not-found"
    )


def config_map(name: str = SERVER_CA, namespace: str = TENANT, **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"ca.crt": "an attacker's"},
        **fields,
    }


def refused(caller: Caller, *arguments: str, stdin: str | None = None) -> None:
    """Try something; our policy refuses it, and says who may and what to do."""
    with pytest.raises(StackError) as refusal:
        caller.kubectl(*arguments, stdin=stdin)
    told = str(refusal.value)
    assert "ValidatingAdmissionPolicy 'derops-trust'" in told
    assert "only system:serviceaccount:derops-system:derops-operator writes" in told
    assert "delete it" in told


@pytest.mark.parametrize("way", [["create"], ["apply"], ["apply", "--server-side"]], ids=" ".join)
def test_one_that_is_there_before_the_operators_is_refused(
    cluster: Cluster, attacker: Caller, way: list[str]
) -> None:
    """T41: a ConfigMap of that name, before the operator has made its own.

    It must be refused: an agent may start before the operator looks.
    """
    cluster.control_plane.kubectl(
        "delete", "configmap", SERVER_CA, "-n", TENANT, "--ignore-not-found"
    )

    refused(attacker, *way, "-f", "-", stdin=json.dumps(config_map()))

    assert held(cluster) == ""


@pytest.mark.parametrize(
    "patch",
    [
        {"data": {"ca.crt": "an attacker's"}},
        {"data": {"ca.crt": None}},
        {"data": {"more": "x" * 100_000}},
        {"binaryData": {"more": "AAAA"}},
        {"immutable": True},
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}},
        {"metadata": {"annotations": {"grown": "x" * 100_000}}},
        {"metadata": {"finalizers": ["attacker.example/stay"]}},
    ],
    ids=["replaced", "emptied", "grown", "binary", "frozen", "disowned", "annotated", "held"],
)
def test_no_change_of_the_operators_is_taken(
    cluster: Cluster, attacker: Caller, kept: str, patch: dict[str, Any]
) -> None:
    """T42: any change of the operator's ConfigMap, what it holds or what is on it."""
    refused(
        attacker, "patch", "configmap", SERVER_CA, "-n", TENANT, "--type=merge",
        "-p", json.dumps(patch),
    )  # fmt: skip
    assert held(cluster) == kept


def test_another_field_manager_takes_nothing_over(
    cluster: Cluster, attacker: Caller, kept: str
) -> None:
    """T47: the same by server-side apply, by force."""
    body = json.dumps(config_map())
    refused(attacker, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=body)
    refused(attacker, "replace", "-f", "-", stdin=body)
    assert held(cluster) == kept


@pytest.mark.usefixtures("kept")
def test_who_deletes_it_puts_no_other_in_its_place(cluster: Cluster, attacker: Caller) -> None:
    """T43: delete, and be faster than the operator. Deleting is a tenant's right; it is healed."""
    attacker.kubectl("delete", "configmap", SERVER_CA, "-n", TENANT)

    refused(attacker, "create", "-f", "-", stdin=json.dumps(config_map()))

    assert held(cluster) == ""


def test_a_certificate_of_the_operators_own_name_is_refused(attacker: Caller) -> None:
    """T44: a tenant forges what tells the operator who the agent CA is.

    A request that exists all the same is not approved, nor believed: it is in another namespace,
    see ``test_vouching.py`` and ``test_distributing.py``.
    """
    made = certificate("derops-agent-trust", "spiffe://x/y", issuer_ref("derops-agent"))
    del made["spec"]["uris"]
    made["spec"]["dnsNames"] = ["derops-agent-trust"]
    attacker.refused(made)


@pytest.mark.parametrize("name", [SERVER_CA, AGENT_CA])
def test_no_tool_writes_those_of_our_namespace(cluster: Cluster, name: str) -> None:
    """T45: a GitOps tool that may do everything applies what a tenant has put into Git."""
    gitops = cluster.callers["gitops"]
    manifest = json.dumps(config_map(name, NAMESPACE))

    refused(gitops, "create", "-f", "-", stdin=manifest)
    refused(gitops, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest)


def test_what_is_nobodys_business_is_let_through(cluster: Cluster, attacker: Caller) -> None:
    """The undisturbed case: other names, and the agent CA's outside our namespace."""
    for name in ("other", AGENT_CA):
        attacker.kubectl("create", "-f", "-", stdin=json.dumps(config_map(name)))
        attacker.kubectl("delete", "configmap", name, "-n", TENANT)
    assert held(cluster, name=AGENT_CA) == ""


def test_a_namespace_with_one_can_go(cluster: Cluster) -> None:
    """T46: what is refused to tenants must not keep a namespace, or a deletion, from ending."""
    kubectl = cluster.control_plane.kubectl
    kubectl("create", "namespace", "goes")
    for name in ("goes", GITOPS):
        cluster.operator.kubectl(
            "apply", "--server-side", "-f", "-",
            stdin=json.dumps(wanted_config_map(name, SERVER_CA, "the operator's")),
        )  # fmt: skip

    kubectl("delete", "configmap", SERVER_CA, "-n", GITOPS, "--cascade=foreground", "--timeout=90s")
    kubectl("delete", "namespace", "goes", "--timeout=60s")
