"""A tenant with the stock role ``edit`` in its namespace gets nothing of the trust of derops."""

import base64
import json
from typing import Any

import pytest
from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.cluster.site import Site, agent_pod
from tests.stack.processes import StackError
from tests.waiting import eventually

_CERT_MANAGER = "cert-manager"


@pytest.fixture
def tenant(site: Site) -> Cluster:
    """Return the cluster in the eyes of a tenant who has ``edit`` where the site's assets are."""
    where = ["-n", site.namespace]
    site.cluster.kubectl("create", "serviceaccount", "tenant", *where)
    account = f"{site.namespace}:tenant"
    site.cluster.kubectl(
        "create", "rolebinding", "tenant", "--clusterrole=edit", f"--serviceaccount={account}",
        *where,
    )  # fmt: skip
    return site.cluster.acting_as(
        f"system:serviceaccount:{account}",
        "system:serviceaccounts",
        f"system:serviceaccounts:{site.namespace}",
        "system:authenticated",
    )


def test_a_tenant_works_in_its_own_namespace(tenant: Cluster, site: Site) -> None:
    """With nothing forbidden asked for: else the refusals below could be of everything."""
    where = ["-n", site.namespace]
    tenant.kubectl("create", "configmap", "mine", "--from-literal=a=b", *where)
    tenant.kubectl("create", "secret", "generic", "mine", "--from-literal=a=b", *where)

    assert tenant.get("configmap", "mine", *where)["data"] == {"a": "b"}
    assert "mine" in tenant.kubectl("get", "secrets", "-o", "name", *where)


@pytest.mark.parametrize("namespace", [installing.NAMESPACE, _CERT_MANAGER])
def test_a_tenant_reads_no_key_of_ours(tenant: Cluster, namespace: str) -> None:
    keys = [
        each["metadata"]["name"]
        for each in Cluster.find().items("secrets", "-n", namespace)
        if "derops" in each["metadata"]["name"]
    ]

    assert keys
    for arguments in (["get", "secrets"], *(["get", "secret", key] for key in keys)):
        assert "forbidden" in tenant.refusal(*arguments, "-n", namespace)
    for verb, thing in (("create", "pods"), ("create", "pods/exec"), ("get", "configmaps")):
        assert not tenant.may(verb, thing, namespace)


def test_a_tenant_runs_no_pod_where_the_keys_are(tenant: Cluster) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "thief"},
        "spec": {"containers": [{"name": "thief", "image": "derops/agent"}]},
    }
    for namespace in (installing.NAMESPACE, _CERT_MANAGER):
        refused = tenant.refusal("create", "-n", namespace, "-f", "-", stdin=json.dumps(pod))
        assert "forbidden" in refused


@pytest.mark.parametrize("issuer", ["derops-agent", "derops-server", "derops-control"])
def test_a_tenant_gets_no_certificate_of_our_issuers(
    tenant: Cluster, site: Site, issuer: str
) -> None:
    for kind in ("Certificate", "CertificateRequest"):
        asked = {"secretName": "stolen", "uris": [f"spiffe://cluster.local/{issuer}"]}
        manifest = {
            "apiVersion": "cert-manager.io/v1",
            "kind": kind,
            "metadata": {"name": "stolen"},
            "spec": {
                **(asked if kind == "Certificate" else {"request": "bm90aGluZw=="}),
                "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": issuer},
            },
        }
        refused = tenant.refusal(
            "create", "-n", site.namespace, "-f", "-", stdin=json.dumps(manifest)
        )
        assert "ValidatingAdmissionPolicy 'derops-certificate" in refused


def test_a_tenant_puts_in_no_other_authority(tenant: Cluster, site: Site) -> None:
    """Whoever may write ConfigMaps would have agents trust a gateway of its own."""
    site.battery()
    genuine = _authority(site)
    where = ["-n", site.namespace]
    forged = json.dumps({"data": {"ca.crt": "-----BEGIN CERTIFICATE-----\nforged\n"}})

    refused = tenant.refusal("patch", "configmap", "derops-server-ca", *where, "-p", forged)
    assert "ValidatingAdmissionPolicy" in refused
    if tenant.may("delete", "configmaps", site.namespace):
        tenant.kubectl("delete", "configmap", "derops-server-ca", *where)
        _refuse_another(tenant, site)
        eventually(lambda: _authority(site) == genuine, "the operator to put it back")
    assert _authority(site) == genuine


def test_a_tenants_agent_key_opens_nothing_else(tenant: Cluster, site: Site) -> None:
    """A tenant may read the key of its own asset's agent, as its pods do: it is that agent's."""
    site.battery()

    secret = tenant.get("secret", "battery-derops-agent", "-n", site.namespace)
    signed = base64.b64decode(secret["data"]["tls.crt"])

    assert b"BEGIN CERTIFICATE" in signed
    assert secret["data"].keys() == {"ca.crt", "tls.crt", "tls.key"}
    pod = site.cluster.get("pod", agent_pod("battery"), "-n", site.namespace)
    assert pod["spec"].get("automountServiceAccountToken") is False


def _refuse_another(tenant: Cluster, site: Site) -> None:
    """Try to create the ConfigMap before the operator does: refused, or it was there already."""
    try:
        tenant.kubectl(
            "create", "configmap", "derops-server-ca", "--from-literal=ca.crt=forged",
            "-n", site.namespace,
        )  # fmt: skip
    except StackError:
        return
    raise AssertionError("a tenant created derops-server-ca")


def _authority(site: Site) -> str | None:
    """Return what the agents of a site trust; None = there is no such ConfigMap."""
    try:
        found = site.cluster.get("configmap", "derops-server-ca", "-n", site.namespace)
    except StackError:
        return None
    data: dict[str, Any] = found["data"]
    return str(data["ca.crt"])
