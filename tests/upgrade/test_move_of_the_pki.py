"""The move of the certificate authorities, by the very commands of the how-to, on the old files.

Before it a tenant mints the operator's certificate, after it no more; no agent loses trust.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import PolicyBuilder, Store
from tests.attacks.cluster import (
    OPERATOR_URI,
    TENANT,
    Caller,
    certificate,
    certificate_request,
    issuer_ref,
)
from tests.stack import places
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import secret_data
from tests.stack.processes import StackError

FIRST = Path(__file__).parent / "first"
HOW_TO = places.REPOSITORY / "docs" / "how-to" / "move-pki.md"
AUTHORITIES = ("derops-server-ca", "derops-control-ca", "derops-agent-ca")
FORMER = [f"clusterissuers.cert-manager.io/derops-{name}" for name in
          ("bootstrap", "server", "control")]  # fmt: skip


@pytest.fixture
def before() -> Iterator[ControlPlane]:
    """Return a control plane as the first version left it: its files, and its approvals."""
    with ControlPlane() as control_plane:
        rule = {
            "apiGroups": ["cert-manager.io"], "resources": ["signers"], "verbs": ["approve"],
            "resourceNames": FORMER,
        }  # fmt: skip
        control_plane.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "approver"},
                "rules": [rule],
            }
        )
        control_plane.kubectl(
            "create", "clusterrolebinding", "approver", "--clusterrole=approver",
            "--serviceaccount=cert-manager:cert-manager",
        )  # fmt: skip
        for name in ("pki-issuers.yaml", "pki-certificates.yaml"):
            text = (FIRST / name).read_text().replace("{{ .Values.trustDomain }}", "derops.test")
            control_plane.apply(*yaml.safe_load_all(text))
        for namespace in ("cert-manager", "derops-system"):
            wait_issued(control_plane, namespace)
        yield control_plane


def wait_issued(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "certificate", "--all", "-n", namespace, "--timeout=60s"
    )


def commands() -> str:
    """Return the how-to's commands as one script."""
    return "\n".join(re.findall(r"```sh\n(.*?)```", HOW_TO.read_text(), re.DOTALL))


def certificates(control_plane: ControlPlane, namespace: str, secret: str) -> x509.Certificate:
    pem = secret_data(control_plane, namespace, secret)["tls.crt"]
    return x509.load_pem_x509_certificates(pem)[0]


def key(authority: x509.Certificate) -> bytes:
    return authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def identity(authority: x509.Certificate) -> bytes:
    kind = x509.SubjectKeyIdentifier
    return authority.extensions.get_extension_for_class(kind).value.digest


def trusts(authority: x509.Certificate, server: x509.Certificate) -> None:
    """Check the chain as a client does that holds nothing but this authority."""
    verifier = PolicyBuilder().store(Store([authority])).build_server_verifier
    verifier(x509.DNSName("derops-gateway")).verify(server, [])


def test_no_agent_loses_trust_and_no_tenant_is_the_operator_any_more(
    before: ControlPlane, tmp_path: Path
) -> None:
    tenant = tenant_of(before)
    control = issuer_ref("derops-control", group="cert-manager.io")
    tenant.create(
        certificate("minted", OPERATOR_URI, control),
        certificate_request("minted-bare", OPERATOR_URI, control),
    )
    wait_issued(before, TENANT)
    minted = certificates(before, TENANT, "minted")
    old = {name: certificates(before, "cert-manager", name) for name in AUTHORITIES}
    assert minted.issuer == old["derops-control-ca"].subject
    old_gateway = certificates(before, "derops-system", "derops-gateway-tls")
    old_operator = certificates(before, "derops-system", "derops-operator-tls")
    trusts(old["derops-server-ca"], old_gateway)

    run(before, tmp_path)

    where = dict.fromkeys(AUTHORITIES, "derops-system") | {"derops-agent-ca": "cert-manager"}
    new = {name: certificates(before, where[name], name) for name in AUTHORITIES}
    assert {name: key(each) for name, each in new.items()} == {
        name: key(each) for name, each in old.items()
    }
    for name in AUTHORITIES:
        # Same name, key and key id: what one of the two verifies, the other does.
        assert (identity(new[name]), new[name].subject) == (identity(old[name]), old[name].subject)
    new_operator = certificates(before, "derops-system", "derops-operator-tls")
    for authority in (old["derops-control-ca"], new["derops-control-ca"]):
        for leaf in (old_operator, new_operator):
            leaf.verify_directly_issued_by(authority)
    new_gateway = certificates(before, "derops-system", "derops-gateway-tls")
    assert new_gateway.serial_number != old_gateway.serial_number
    for authority in (old["derops-server-ca"], new["derops-server-ca"]):
        for server in (old_gateway, new_gateway):
            trusts(authority, server)
    left = before.kubectl("get", "clusterissuers", "-o", "jsonpath={.items[*].metadata.name}")
    assert left == "derops-agent"
    for secret in ("derops-server-ca", "derops-control-ca"):
        with pytest.raises(StackError, match="NotFound"):
            before.kubectl("get", "secret", secret, "-n", "cert-manager")
    tenant.refused(
        certificate("again", OPERATOR_URI, control),
        certificate_request("again-bare", OPERATOR_URI, control),
    )


def tenant_of(control_plane: ControlPlane) -> Caller:
    """Return an account with no right but to create Certificates and requests in one namespace."""
    control_plane.kubectl("create", "namespace", TENANT)
    control_plane.kubectl("create", "serviceaccount", "builder", "-n", TENANT)
    control_plane.kubectl(
        "create", "role", "builder", "-n", TENANT, "--verb=create",
        "--resource=certificates.cert-manager.io,certificaterequests.cert-manager.io",
    )  # fmt: skip
    control_plane.kubectl(
        "create", "rolebinding", "builder", "-n", TENANT, "--role=builder",
        f"--serviceaccount={TENANT}:builder",
    )  # fmt: skip
    config = control_plane.service_account_kubeconfig(TENANT, "builder")
    return Caller(control_plane.binaries.kubectl, config)


def run(control_plane: ControlPlane, directory: Path) -> None:
    """Run the how-to's commands as the administrator who reads them."""
    (directory / "kubectl").symlink_to(control_plane.binaries.kubectl)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands()],
        cwd=places.REPOSITORY,
        env=os.environ
        | {
            "PATH": f"{directory}:{os.environ['PATH']}",
            "KUBECONFIG": control_plane.kubeconfig,
            "TRUST_DOMAIN": "derops.test",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    compared = re.findall(r"= ([0-9a-f]{64})", done.stdout)
    assert compared[0] == compared[1] and compared[2] == compared[3] != compared[0]  # noqa: PT018
    assert re.search(rf"{TENANT} +minted-1 +derops-control", done.stdout)
