"""The control plane is real: two side by side, issuance, approval, rights, a clean end."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from tests import pki
from tests.stack import identities
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import (
    CERT_MANAGER_USER,
    OPERATOR_USER,
    install_issuers,
    install_policies,
    issue,
    secret_data,
)
from tests.stack.processes import MARK, StackError


def still_running(directory: Path) -> list[str]:
    """Return the command lines of processes that carry the mark of ``directory``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            if f"{MARK}={directory}".encode() in environment:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended while we looked
            continue
    return found


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    with ControlPlane() as running:
        install_issuers(running)
        yield running


def test_two_control_planes_run_side_by_side_and_end_without_a_trace() -> None:
    with ControlPlane() as first, ControlPlane() as second:
        first.kubectl("create", "configmap", "only-here", "-n", "default")
        with pytest.raises(StackError, match="NotFound"):
            second.kubectl("get", "configmap", "only-here", "-n", "default")
        directories = [first.directory, second.directory]
        assert [len(still_running(directory)) for directory in directories] == [5, 5]

    assert [still_running(directory) for directory in directories] == [[], []]
    assert not any(directory.exists() for directory in directories)


def agent_certificate(name: str) -> dict[str, object]:
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "secretName": name,
            "uris": [f"spiffe://derops.test/ns/default/derasset/{name}"],
            "usages": ["digital signature", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256},
            "issuerRef": {
                "group": "cert-manager.io", "kind": "ClusterIssuer", "name": "derops-agent",
            },
        },
    }  # fmt: skip


def test_an_agents_certificate_is_issued_after_approval_and_not_before(
    control_plane: ControlPlane,
) -> None:
    control_plane.kubectl(
        "create", "-f", "-", f"--as={OPERATOR_USER}", "--as-group=system:masters",
        stdin=json.dumps(agent_certificate("battery-7")),
    )  # fmt: skip
    control_plane.kubectl(
        "wait", "--for=create", "certificaterequest/battery-7-1", "-n", "default", "--timeout=90s"
    )
    with pytest.raises(StackError, match="timed out"):
        control_plane.kubectl(
            "wait", "--for=condition=Ready", "certificate/battery-7", "-n", "default",
            "--timeout=3s",
        )  # fmt: skip

    approval = {"type": "Approved", "status": "True", "reason": "Test", "message": "by the test"}
    patch = json.dumps({"status": {"conditions": [approval]}})
    approve = (
        "patch",
        "certificaterequest",
        "battery-7-1",
        "-n",
        "default",
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
    )
    with pytest.raises(StackError, match="ValidatingAdmissionPolicy 'derops-certificaterequests'"):
        control_plane.kubectl(*approve)
    control_plane.kubectl(*approve, f"--as={OPERATOR_USER}", "--as-group=system:masters")
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "certificate/battery-7", "-n", "default", "--timeout=90s"
    )

    pem = secret_data(control_plane, "default", "battery-7")["tls.crt"]
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://derops.test/ns/default/derasset/battery-7"
    ]


def test_cert_managers_webhook_stamps_the_requester_and_keeps_the_spec(
    control_plane: ControlPlane,
) -> None:
    request = {
        "apiVersion": "cert-manager.io/v1",
        "kind": "CertificateRequest",
        "metadata": {"name": "stamped", "namespace": "default"},
        "spec": {
            "request": pki.signing_request("spiffe://derops.test/x"),
            "issuerRef": {"name": "none", "kind": "Issuer"},
            "username": CERT_MANAGER_USER,
        },
    }
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(request))

    username = control_plane.kubectl(
        "get", "certificaterequest", "stamped", "-n", "default", "-o", "jsonpath={.spec.username}"
    )
    assert username == "derops-admin"
    with pytest.raises(StackError, match="cannot change"):
        control_plane.kubectl(
            "patch", "certificaterequest", "stamped", "-n", "default", "--type=merge",
            "-p", json.dumps({"spec": {"isCA": True}}),
        )  # fmt: skip


def test_cert_managers_webhook_asks_rbac_who_may_approve(control_plane: ControlPlane) -> None:
    """Also where no policy of ours is: cert-manager's own ServiceAccount may not, by its chart."""
    control_plane.kubectl(
        "delete", "validatingadmissionpolicybinding", "derops-certificaterequests"
    )
    request = {
        "apiVersion": "cert-manager.io/v1",
        "kind": "CertificateRequest",
        "metadata": {"name": "unanswered", "namespace": "default"},
        "spec": {
            "request": pki.signing_request("spiffe://derops.test/x"),
            "issuerRef": {"name": "derops-agent", "kind": "ClusterIssuer"},
        },
    }
    probe = ("create", "-f", "-")
    deadline = time.monotonic() + 30
    while True:  # until the API server no longer enforces what was deleted
        try:
            control_plane.kubectl(*probe, stdin=json.dumps(request))
            break
        except StackError:
            if time.monotonic() > deadline:
                raise
    approver = control_plane.processes["cert-manager"]
    approver.wait_until(
        lambda: "does not have permissions to set approved" in approver.log_file.read_text()
    )
    install_policies(control_plane)


def test_the_headends_identities_are_issued_by_three_trusts(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    issued = issue(control_plane, "derops.test", tmp_path)

    authorities = {
        (issued.agent_port / "ca.crt").read_bytes(),
        (issued.control_port / "ca.crt").read_bytes(),
        secret_data(control_plane, "cert-manager", "derops-agent-ca")["ca.crt"],
    }
    assert len(authorities) == 3
    assert issued.server_ca.read_bytes() == (issued.agent_port / "ca.crt").read_bytes()
    assert (issued.operator / "ca.crt").read_bytes() == (
        issued.control_port / "ca.crt"
    ).read_bytes()


def test_a_service_account_has_the_rights_it_was_given_and_no_more(
    control_plane: ControlPlane,
) -> None:
    control_plane.kubectl("create", "serviceaccount", "reader", "-n", "default")
    control_plane.kubectl(
        "create", "clusterrole", "reader", "--verb=get,list", "--resource=configmaps"
    )
    control_plane.kubectl(
        "create", "clusterrolebinding", "reader", "--clusterrole=reader",
        "--serviceaccount=default:reader",
    )  # fmt: skip
    config = control_plane.service_account_kubeconfig("default", "reader")

    def as_reader(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [control_plane.binaries.kubectl, *arguments],
            env=os.environ | {"KUBECONFIG": config},
            capture_output=True,
            text=True,
            check=False,
        )

    assert as_reader("get", "configmaps", "-A").returncode == 0
    refused = as_reader("get", "secrets", "-A")
    assert refused.returncode == 1
    assert "system:serviceaccount:default:reader" in refused.stderr


def test_one_value_of_the_chart_is_the_trust_domain() -> None:
    certificates = identities.chart_manifests("pki-certificates.yaml", "pilot.example")

    uris = [uri for document in certificates for uri in document["spec"].get("uris", [])]
    assert uris == ["spiffe://pilot.example/operator"]
