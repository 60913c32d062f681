"""Attacker: whoever has one namespace, and what a GitOps tool with all rights creates for them.

They want a certificate that makes them the operator, a gateway or the agent of somebody else. All
runs on the real API server with the real cert-manager, its webhook and its chart's rights. That the
same worked before the issuers moved is seen in ``tests/upgrade/test_move_of_the_pki.py``.
"""

import base64
import json

import pytest
from tests import pki
from tests.attacks.cluster import (
    FOREIGN_URI,
    OPERATOR_URI,
    OWN_URI,
    TENANT,
    Caller,
    Cluster,
    agent_certificate,
    approval,
    certificate,
    certificate_request,
    cluster,
    issuer_ref,
    kubernetes_request,
    numbers,
)
from tests.stack.identities import CERT_MANAGER_USER, NAMESPACE
from tests.stack.processes import StackError

__all__ = ["cluster"]
ISSUERS = ("derops-agent", "derops-server", "derops-control", "derops-bootstrap")
GROUPS: tuple[dict[str, str], ...] = ({"group": "cert-manager.io"}, {"group": ""}, {})


@pytest.fixture(params=["tenant", "gitops"])
def attacker(cluster: Cluster, request: pytest.FixtureRequest) -> Caller:
    """Return in turn the tenant's account and that of the tool that applies what tenants write."""
    return cluster.callers[request.param]


@pytest.mark.parametrize("issuer", ISSUERS)
def test_a_certificate_for_one_of_our_issuers_is_refused(attacker: Caller, issuer: str) -> None:
    """T1: a Certificate for the operator's or another asset's URI, however its issuer is written.

    The API server must refuse it and tell the author who may and what to do instead.
    """
    attacker.refused(
        *(
            certificate("mint", uri, issuer_ref(issuer, **group))
            for uri in (OPERATOR_URI, FOREIGN_URI, OWN_URI)
            for group in GROUPS
        )
    )


@pytest.mark.parametrize("issuer", ISSUERS)
def test_a_request_for_one_of_our_issuers_is_refused(attacker: Caller, issuer: str) -> None:
    """T2: a bare CertificateRequest for the same; refused and told as T1."""
    attacker.refused(
        *(
            certificate_request("mint", uri, issuer_ref(issuer, **group))
            for uri in (OPERATOR_URI, FOREIGN_URI)
            for group in GROUPS
        )
    )


def test_a_request_cannot_name_its_requester(attacker: Caller) -> None:
    """T3: a CertificateRequest that says by itself that cert-manager made it; refused and told."""
    forged = certificate_request("forged", OWN_URI, issuer_ref("derops-agent"))
    forged["spec"]["username"] = CERT_MANAGER_USER
    attacker.refused(forged)


def test_an_ingress_makes_no_certificate_for_one_of_our_issuers(
    cluster: Cluster, attacker: Caller
) -> None:
    """T4: an Ingress whose annotations have cert-manager itself write the Certificate.

    Needs no right on cert-manager's kinds. cert-manager's attempt is refused, which its log tells.
    """
    name = f"ingress-{'tenant' if attacker is cluster.callers['tenant'] else 'gitops'}"
    attacker.create(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {
                "name": name,
                "namespace": TENANT,
                "annotations": {
                    "cert-manager.io/cluster-issuer": "derops-agent",
                    "cert-manager.io/uri-sans": OPERATOR_URI,
                    "cert-manager.io/usages": "client auth",
                },
            },
            "spec": {
                "tls": [{"hosts": ["example.test"], "secretName": name}],
                "defaultBackend": {"service": {"name": "none", "port": {"number": 80}}},
            },
        }
    )
    process = cluster.control_plane.processes["cert-manager"]

    def is_refused() -> bool:
        lines = process.log_file.read_text(errors="replace").splitlines()
        return any(name in line and "'derops-certificates'" in line for line in lines)

    process.wait_until(is_refused)
    with pytest.raises(StackError, match="NotFound"):
        attacker.kubectl("get", "certificate", name, "-n", TENANT)


def test_a_certificate_does_not_change_its_issuer_to_ours(
    cluster: Cluster, attacker: Caller
) -> None:
    """T5: a harmless Certificate that is changed later, and one of ours that is changed.

    Each way is refused and told: to our issuer, from our issuer, to other names, to other labels.
    """
    harmless = f"harmless-{next(numbers)}"
    attacker.create(certificate(harmless, OPERATOR_URI, issuer_ref("none", kind="Issuer")))
    ours = agent_certificate(cluster)
    to_ours = {"spec": {"issuerRef": issuer_ref("derops-control", group="cert-manager.io")}}
    for name, patch in (
        (harmless, to_ours),
        (ours, {"spec": {"issuerRef": issuer_ref("none", kind="Issuer")}}),
        (ours, {"spec": {"uris": [FOREIGN_URI]}}),
        (ours, {"metadata": {"labels": {"derops.io/asset": "another"}}}),
    ):
        with pytest.raises(StackError, match="ValidatingAdmissionPolicy 'derops-certificates'"):
            attacker.kubectl(
                "patch", "certificate", name, "-n", TENANT, "--type=merge", "-p", json.dumps(patch)
            )


@pytest.mark.parametrize("answer", ["Approved", "Denied"])
def test_nobody_but_the_operator_answers_a_request(
    cluster: Cluster, attacker: Caller, answer: str
) -> None:
    """T6: a tenant who approves or denies a request of cert-manager; refused and told who may.

    Also with every right on signers, and in derops' own namespace.
    """
    name = agent_certificate(cluster)
    with pytest.raises(StackError, match="ValidatingAdmissionPolicy 'derops-certificaterequests'"):
        attacker.patch_status("certificaterequest", f"{name}-1", {"conditions": [approval(answer)]})
    gitops = cluster.callers["gitops"]
    inside = certificate_request("inside", OWN_URI, issuer_ref("derops-agent"), NAMESPACE)
    gitops.create(inside)
    with pytest.raises(
        StackError, match="approves and denies requests to ClusterIssuer derops-agent"
    ):
        gitops.patch_status(
            "certificaterequest", "inside", {"conditions": [approval(answer)]}, NAMESPACE
        )
    gitops.kubectl("delete", "certificaterequest", "inside", "-n", NAMESPACE)
    cluster.approve(f"{name}-1")
    cluster.wait("certificate", name, "condition=Ready")


def test_nobody_writes_a_certificate_into_a_request(cluster: Cluster, attacker: Caller) -> None:
    """T7: a foreign certificate as the answer of a request of ours; refused and told who may."""
    request = f"{agent_certificate(cluster)}-1"
    forged = base64.b64encode(pki.Authority("thief").pem).decode()
    for status in (
        {"certificate": forged},
        {"ca": forged},
        {"conditions": [{"type": "Ready", "status": "True", "reason": "Issued"}]},
    ):
        with pytest.raises(StackError, match="'derops-certificaterequests'"):
            attacker.patch_status("certificaterequest", request, status)


def test_nobody_writes_the_status_of_our_certificates(cluster: Cluster, attacker: Caller) -> None:
    """T8: a tenant who has keys made over and over, or hides that one is due; refused, told."""
    name = agent_certificate(cluster)
    issuing = {"type": "Issuing", "status": "True", "reason": "x", "message": "x"}
    for status in ({"conditions": [issuing]}, {"revision": 99}):
        with pytest.raises(StackError, match="ValidatingAdmissionPolicy 'derops-certificates'"):
            attacker.patch_status("certificate", name, status)


def test_kubernetes_signing_requests_for_our_issuers_are_refused(attacker: Caller) -> None:
    """T9: a CertificateSigningRequest with one of our signer names; refused for everybody, told."""
    signers = [f"clusterissuers.cert-manager.io/{name}" for name in ISSUERS]
    signers += [f"issuers.cert-manager.io/{NAMESPACE}.{name}" for name in ISSUERS[1:]]
    attacker.refused(*(kubernetes_request("mint", signer) for signer in signers))
