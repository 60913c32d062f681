"""What the admission policies leave alone: installers, renewals, deletions, others' issuers."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.attacks.cluster import (
    OWN_URI,
    TENANT,
    Cluster,
    agent_certificate,
    certificate,
    cluster,
    issuer_ref,
    numbers,
)
from tests.stack.identities import NAMESPACE, secret_data

__all__ = ["cluster"]


def test_an_installer_applies_what_it_likes_in_derops_own_namespace(cluster: Cluster) -> None:
    installer = cluster.callers["gitops"]
    name = f"installed-{next(numbers)}"
    control = issuer_ref("derops-control", kind="Issuer", group="cert-manager.io")
    agent = issuer_ref("derops-agent", group="cert-manager.io")
    installer.create(
        certificate(name, "spiffe://derops.test/operator", control, NAMESPACE),
        certificate(f"{name}-agent", OWN_URI, agent, NAMESPACE),
    )

    cluster.wait("certificate", name, "condition=Ready", NAMESPACE)
    cluster.wait("certificaterequest", f"{name}-agent-1", "create", NAMESPACE)
    cluster.approve(f"{name}-agent-1", NAMESPACE)
    cluster.wait("certificate", f"{name}-agent", "condition=Ready", NAMESPACE)


def test_a_tenants_own_issuer_is_none_of_our_business(cluster: Cluster) -> None:
    tenant = cluster.callers["tenant"]
    name = f"own-{next(numbers)}"
    cluster.control_plane.apply(
        {
            "apiVersion": "cert-manager.io/v1",
            "kind": "Issuer",
            "metadata": {"name": "derops-agent", "namespace": TENANT},
            "spec": {"selfSigned": {}},
        }
    )
    tenant.create(certificate(name, OWN_URI, issuer_ref("derops-agent", kind="Issuer")))
    cluster.wait("certificate", name, "condition=Ready")


def issued(cluster: Cluster) -> str:
    """Return the name of a Certificate that the operator made and approved, once it is issued."""
    name = agent_certificate(cluster)
    cluster.approve(f"{name}-1")
    cluster.wait("certificate", name, "condition=Ready")
    # Ready comes first, from another controller than what takes the condition Issuing away.
    cluster.wait("certificate", name, "jsonpath={.status.revision}=1")
    return name


def renew(cluster: Cluster, name: str) -> None:
    """Do what ``cmctl renew`` does, as the operator."""
    conditions = json.loads(
        cluster.operator.kubectl("get", "certificate", name, "-n", TENANT, "-o", "json")
    )["status"]["conditions"]
    issuing = {
        "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "by a test",
    }  # fmt: skip
    cluster.operator.patch_status("certificate", name, {"conditions": [*conditions, issuing]})


def lose_the_secret(cluster: Cluster, name: str) -> None:
    cluster.control_plane.kubectl("delete", "secret", name, "-n", TENANT)


def change_the_duration(cluster: Cluster, name: str) -> None:
    patch = json.dumps({"spec": {"duration": "48h"}})
    cluster.operator.kubectl(
        "patch", "certificate", name, "-n", TENANT, "--type=merge", "-p", patch
    )


@pytest.mark.parametrize("cause", [renew, lose_the_secret, change_the_duration])
def test_what_makes_a_new_certificate_goes_on(
    cluster: Cluster, cause: Callable[[Cluster, str], None]
) -> None:
    name = issued(cluster)
    before = secret_data(cluster.control_plane, TENANT, name)["tls.crt"]

    cause(cluster, name)
    cluster.wait("certificaterequest", f"{name}-2", "create")
    cluster.approve(f"{name}-2")
    cluster.wait("certificate", name, "jsonpath={.status.revision}=2")

    assert secret_data(cluster.control_plane, TENANT, name)["tls.crt"] != before


def asset(cluster: Cluster) -> dict[str, Any]:
    """Create a DERAsset that nobody looks after, and return the reference to it as an owner."""
    name = f"owner-{next(numbers)}"
    cluster.control_plane.apply(
        {
            "apiVersion": "derops.io/v1alpha1",
            "kind": "DERAsset",
            "metadata": {"name": name, "namespace": TENANT},
            "spec": {
                "type": "Solar",
                "ratings": {"maxInjectionWatts": 8000, "maxAbsorptionWatts": 0},
            },
        }
    )
    uid = cluster.control_plane.kubectl(
        "get", "derasset", name, "-n", TENANT, "-o", "jsonpath={.metadata.uid}"
    )
    return {
        "apiVersion": "derops.io/v1alpha1", "kind": "DERAsset", "name": name, "uid": uid,
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip


def test_an_asset_can_leave_its_certificate_behind(cluster: Cluster) -> None:
    """The garbage collector takes the owner off the Certificate, as ``--cascade=orphan`` asks."""
    owner = asset(cluster)
    name = agent_certificate(cluster, ownerReferences=[owner])

    cluster.control_plane.kubectl(
        "delete", "derasset", owner["name"], "-n", TENANT, "--cascade=orphan", "--timeout=90s"
    )

    left = json.loads(
        cluster.control_plane.kubectl("get", "certificate", name, "-n", TENANT, "-o", "json")
    )
    assert "ownerReferences" not in left["metadata"]


def test_a_certificate_can_leave_its_requests_behind(cluster: Cluster) -> None:
    name = agent_certificate(cluster)

    cluster.control_plane.kubectl(
        "delete", "certificate", name, "-n", TENANT, "--cascade=orphan", "--timeout=90s"
    )

    request = cluster.control_plane.kubectl(
        "get", "certificaterequest", f"{name}-1", "-n", TENANT, "-o", "json"
    )
    assert "ownerReferences" not in json.loads(request)["metadata"]


def test_an_asset_takes_its_certificate_with_it(cluster: Cluster) -> None:
    owner = asset(cluster)
    name = agent_certificate(cluster, ownerReferences=[owner])

    cluster.control_plane.kubectl(
        "delete", "derasset", owner["name"], "-n", TENANT, "--cascade=foreground",
        "--timeout=90s",
    )  # fmt: skip

    cluster.control_plane.kubectl(
        "wait", "--for=delete", f"certificate/{name}", "-n", TENANT, "--timeout=90s"
    )
