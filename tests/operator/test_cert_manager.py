"""Names that contradict each other are told with both; what cannot be told is told as that."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.stack.identities import CERT_MANAGER_USER, OPERATOR_USER, chart_manifests

from derops.observability import Readiness
from derops_operator.cluster.client import GoneError, Manifest
from derops_operator.trust.cert_manager import (
    POLICIES,
    Expected,
    Observed,
    TrustCheck,
    behind,
    doubts,
    newest_requester,
    policy_names,
    wrong_names,
)

EXPECTED = Expected(cert_manager_user=CERT_MANAGER_USER, namespace="derops-system")
INSTALLED: dict[str, Manifest] = {
    each["metadata"]["name"]: each
    for each in chart_manifests("admission-policies.yaml")
    if each["kind"] == "ValidatingAdmissionPolicy"
}


def request(username: str, second: int, **changes: Any) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "metadata": {
            "creationTimestamp": f"2026-12-01T00:00:{second:02}Z",
            "ownerReferences": [{"kind": "Certificate", "controller": True}],
        },
        "spec": {"issuerRef": {"kind": "Issuer", "name": "derops-control"}, "username": username},
    }
    manifest["spec"] |= changes.pop("spec", {})
    manifest["metadata"] |= changes
    return manifest


def seen(
    requester: str = CERT_MANAGER_USER, policies: Mapping[str, dict[str, str]] | None = None
) -> Observed:
    installed = {name: policy_names(policy) for name, policy in INSTALLED.items()}
    held = installed | dict(policies or {})
    return Observed(operator_user=OPERATOR_USER, requester=requester, policies=held)


def test_the_newest_request_for_our_own_certificates_tells_who_cert_manager_is() -> None:
    requests = [
        request("earlier", 1),
        request("newest", 3),
        request("between", 2),
        request("an-installer", 9, ownerReferences=[]),
        request("of-an-asset", 9, spec={"issuerRef": {"kind": "ClusterIssuer", "name": "x"}}),
    ]
    assert newest_requester(requests) == "newest"
    assert newest_requester(requests[3:]) == ""


def test_the_charts_policies_hold_the_names_that_are_compared() -> None:
    assert set(INSTALLED) == set(POLICIES)
    names = policy_names(INSTALLED["derops-certificaterequests"])
    assert names == {
        "operator": OPERATOR_USER,
        "certManager": CERT_MANAGER_USER,
        "deropsNamespace": "derops-system",
    }


def test_names_that_agree_are_well() -> None:
    assert wrong_names(EXPECTED, seen()) == []
    assert doubts(EXPECTED, seen()) == {}


def test_a_wrong_setting_is_told_with_both_names() -> None:
    (message,) = wrong_names(EXPECTED, seen(requester="system:serviceaccount:security:cm"))

    assert "system:serviceaccount:security:cm" in message
    assert f"DEROPS_OPERATOR_CERT_MANAGER_USER is {CERT_MANAGER_USER}" in message


@pytest.mark.parametrize(
    ("variable", "source"),
    [
        ("certManager", "DEROPS_OPERATOR_CERT_MANAGER_USER"),
        ("operator", "the operator's own user name"),
        ("deropsNamespace", "DEROPS_OPERATOR_NAMESPACE"),
    ],
)
def test_a_policy_with_another_name_is_told(variable: str, source: str) -> None:
    policies = {"derops-certificates": {variable: "somebody else"}}
    (message,) = wrong_names(EXPECTED, seen(policies=policies))

    assert f"derops-certificates has {variable} somebody else, but {source} is" in message


def test_what_is_not_guarded_or_cannot_be_told_is_said() -> None:
    found = doubts(EXPECTED, Observed(operator_user=OPERATOR_USER, requester="", policies={}))

    assert "derops-certificaterequests" in found["admission policies"]
    assert "nobody has checked" in found["requester"]


class FakePort:
    """An API server that holds what it is told."""

    def __init__(self) -> None:
        self.requester = CERT_MANAGER_USER
        self.installed: dict[str, Manifest] = dict(INSTALLED)
        self.error: Exception | None = None
        self.others: list[dict[str, Any]] = []

    async def user_name(self) -> str:
        return OPERATOR_USER

    async def requests_in(self, namespace: str) -> list[Manifest]:
        if self.error:
            raise self.error
        return [request(self.requester, 1), *self.others]

    async def policy(self, name: str) -> tuple[Manifest, Manifest]:
        if name not in self.installed:
            raise GoneError(name)
        return self.installed[name], {}


async def test_readiness_follows_what_is_seen() -> None:
    port, readiness = FakePort(), Readiness()
    check = TrustCheck(EXPECTED, port, readiness, nobody)
    await check.look()
    assert readiness.report() == (True, "ok")

    port.requester = "system:serviceaccount:security:cm"
    await check.look()
    ready, text = readiness.report()
    assert not ready
    assert "waiting for names of cert-manager and operator: certificates in namespace" in text

    port.requester = CERT_MANAGER_USER
    del port.installed["derops-certificates"]
    await check.look()
    ready, text = readiness.report()
    assert ready
    assert "degraded admission policies: not installed" in text

    port.installed, port.error = dict(INSTALLED), RuntimeError("away")
    await check.look()
    ready, text = readiness.report()
    assert ready
    assert "degraded requester: cannot be looked at: away" in text

    port.error = None
    await check.look()
    assert readiness.report() == (True, "ok")


async def nobody(name: str) -> None:
    raise AssertionError(f"{name} is renewed")


def signed(name: str, second: int, authority: str, **spec: Any) -> dict[str, Any]:
    """Return a request for a Certificate that an authority has signed."""
    owners = [{"kind": "Certificate", "controller": True, "name": name}]
    made = request(CERT_MANAGER_USER, second, ownerReferences=owners, spec=spec)
    return made | {"status": {"certificate": "x", "ca": authority}}


def test_who_was_signed_by_an_earlier_control_ca_is_behind() -> None:
    gateway, operator = "derops-gateway-control", "derops-operator"

    assert behind([]) == []
    assert behind([signed(gateway, 1, "a"), signed(operator, 2, "a")]) == []
    assert behind([signed(gateway, 3, "b"), signed(operator, 2, "a")]) == [operator]
    assert behind([signed(gateway, 1, "a"), signed(operator, 2, "b")]) == [gateway]
    renewed = signed(operator, 4, "b")
    assert behind([signed(gateway, 3, "b"), signed(operator, 2, "a"), renewed]) == []


def test_other_authorities_and_what_is_not_signed_yet_put_nobody_behind() -> None:
    server = signed("derops-gateway", 9, "s", issuerRef={"kind": "Issuer", "name": "derops-server"})
    waiting = signed("derops-operator", 9, "b") | {"status": {}}

    assert behind([signed("derops-operator", 1, "a"), server, waiting]) == []


async def test_who_is_behind_is_renewed_and_a_failure_ends_no_check() -> None:
    port, asked = FakePort(), []
    port.others = [signed("derops-gateway-control", 3, "b"), signed("derops-operator", 2, "a")]

    async def renew(name: str) -> None:
        asked.append(name)
        raise RuntimeError("away")

    check = TrustCheck(EXPECTED, port, Readiness(), renew)
    await check.look()
    await check.look()

    assert asked == ["derops-operator", "derops-operator"]
