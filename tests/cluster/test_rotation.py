"""All certificates are renewed, also under new keys of all authorities, and nobody lends a hand.

A dispatch runs meanwhile, and must not notice. What is awaited is what parts really use: the
certificate that the gateway shows to a stranger, and the keys in the ledger of the asset.
"""

import hashlib
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.cluster import installing
from tests.cluster.certificates import first, secret, split
from tests.cluster.cluster import Cluster
from tests.cluster.pods import pod_of
from tests.cluster.proving import assert_true
from tests.cluster.site import Site, agent_pod
from tests.stack.identities import CERT_MANAGER_USER
from tests.waiting import eventually

PROPAGATION_SECONDS = 300
"""Kubelets look at mounted Secrets and ConfigMaps once a minute or two."""

_AUTHORITIES = {
    "derops-server-ca": installing.NAMESPACE,
    "derops-control-ca": installing.NAMESPACE,
    "derops-agent-ca": "cert-manager",
}
_SHOW = (
    "import ssl; print(ssl.get_server_certificate("
    "('derops-gateway.derops-system.svc.cluster.local', 8443)))"
)


@pytest.mark.timeout(1200)
def test_certificates_are_renewed_and_a_dispatch_does_not_notice(site: Site) -> None:
    site.battery()
    before = shown(site)
    site.dispatch("across", durationSeconds=1200)
    site.wait_for_phase("across", "Active")

    renew_all(site.cluster, site.namespace)
    wait_until_used(site)

    assert shown(site) != before
    _finish(site, "across")


@pytest.mark.timeout(1800)
def test_authorities_with_new_keys_are_trusted_before_they_are_used(site: Site) -> None:
    site.battery()
    old = {name: secret(site.cluster, space, name) for name, space in _AUTHORITIES.items()}
    site.dispatch("across", durationSeconds=1800)
    site.wait_for_phase("across", "Active")

    for name, namespace in _AUTHORITIES.items():
        site.cluster.kubectl("delete", "secret", name, "-n", namespace)
    new = {name: _await_other(site.cluster, name, pem) for name, pem in old.items()}
    eventually(
        lambda: _agents_trust(site, old["derops-server-ca"], new["derops-server-ca"]),
        "agents to trust both server authorities",
        PROPAGATION_SECONDS,
    )
    eventually(
        lambda: _gateway_trusts(site.cluster, new["derops-agent-ca"]),
        "the gateway to trust the new authority of agents",
        PROPAGATION_SECONDS,
    )
    renew_all(site.cluster, site.namespace)
    wait_until_used(site)

    assert _signed_by(shown(site), new["derops-server-ca"])
    assert not _signed_by(shown(site), old["derops-server-ca"])
    _finish(site, "across")


def renew_all(cluster: Cluster, *namespaces: str) -> None:
    """Renew each certificate but those of authorities, as ``cmctl renew`` does."""
    for namespace in (installing.NAMESPACE, *namespaces):
        for each in cluster.items("certificates.cert-manager.io", "-n", namespace):
            if not each["spec"].get("isCA"):
                _renew(cluster, each)


def wait_until_used(site: Site) -> None:
    """Wait until gateway, operator and agent have their newest keys in use."""
    cluster = site.cluster
    eventually(
        lambda: not _being_issued(cluster, installing.NAMESPACE, site.namespace),
        "certificates to be issued",
    )
    eventually(
        lambda: shown(site) == secret(cluster, installing.NAMESPACE, "derops-gateway-tls"),
        "the gateway to show its newest certificate",
        PROPAGATION_SECONDS,
    )
    eventually(
        lambda: _current_key(site) == _key(secret(cluster, site.namespace, "battery-derops-agent")),
        "the agent to be known by its newest key",
        PROPAGATION_SECONDS,
    )
    site.wait_for_condition("derasset", "battery", "Connected", "True")


def _being_issued(cluster: Cluster, *namespaces: str) -> list[str]:
    """Return the certificates that cert-manager is still at."""
    return [
        each["metadata"]["name"]
        for namespace in namespaces
        for each in cluster.items("certificates.cert-manager.io", "-n", namespace)
        if any(
            condition["type"] == "Issuing" and condition["status"] == "True"
            for condition in each["status"]["conditions"]
        )
    ]


def shown(site: Site) -> bytes:
    """Return the certificate that the gateway shows to whoever dials, as PEM."""
    text = site.cluster.run_in(agent_pod("battery"), site.namespace, "python3", "-c", _SHOW)
    return first(text.encode())


def _finish(site: Site, name: str) -> None:
    """Cancel the dispatch that ran all the time, and see that a new one works as well."""
    site.cancel(name)
    status = site.wait_for_phase(name, "Cancelled")
    assert status["execution"]["interruptions"] == 0
    assert_true(site, name)
    setpoint = {"mode": "ActivePower", "activePowerWatts": 4100}
    site.dispatch("after", setpoint=setpoint, durationSeconds=8)
    site.wait_for_phase("after", "Complete")
    assert_true(site, "after")


def _renew(cluster: Cluster, certificate: dict[str, Any]) -> None:
    metadata = certificate["metadata"]
    issuing = {
        "type": "Issuing",
        "status": "True",
        "reason": "ManuallyTriggered",
        "message": "renewed by a test",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    # Not "kubectl patch": it reads the status first, for which cert-manager has no right.
    where = f"/apis/cert-manager.io/v1/namespaces/{metadata['namespace']}/certificates"
    certificate["status"]["conditions"].append(issuing)
    cluster.acting_as(CERT_MANAGER_USER).kubectl(
        "replace", "--raw", f"{where}/{metadata['name']}/status", "-f", "-",
        stdin=json.dumps(certificate),
    )  # fmt: skip


def _await_other(cluster: Cluster, name: str, old: bytes) -> bytes:
    """Return an authority's new certificate once it is there."""
    namespace = _AUTHORITIES[name]

    def look() -> bytes | None:
        if not cluster.kubectl("get", "secret", name, "-n", namespace, "--ignore-not-found"):
            return None
        new = secret(cluster, namespace, name)
        return None if new == old else new

    return eventually(look, f"{name} to have a new key")


def _agents_trust(site: Site, *authorities: bytes) -> bool:
    text = site.cluster.run_in(
        agent_pod("battery"), site.namespace, "cat", "/server-ca/ca.crt"
    ).encode()
    return all(authority in split(text) for authority in authorities)


def _gateway_trusts(cluster: Cluster, authority: bytes) -> bool:
    pod = pod_of(cluster, "headend", installing.NAMESPACE)
    path = "cat $DEROPS_GATEWAY_AGENT_CA_FILE"
    text = cluster.run_in(
        pod.name, installing.NAMESPACE, "sh", "-c", path, container="gateway"
    ).encode()
    return authority in split(text)


def _current_key(site: Site) -> str:
    identity = site.get("derasset", "battery")["status"]["identity"]
    return str(identity["current"]["publicKeySHA256"])


def _key(pem: bytes) -> str:
    key = x509.load_pem_x509_certificate(pem).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.hexdigest()


def _signed_by(pem: bytes, authority: bytes) -> bool:
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (InvalidSignature, ValueError):
        return False
    return True
