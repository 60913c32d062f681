"""The control plane is real: two side by side, issuance, approval, rights, a clean end."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from tests.stack import identities
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import install_issuers, issue, secret_data
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
        assert [len(still_running(directory)) for directory in directories] == [4, 4]

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
    control_plane.apply(agent_certificate("battery-7"))
    control_plane.kubectl(
        "wait", "--for=create", "certificaterequest/battery-7-1", "-n", "default", "--timeout=30s"
    )
    with pytest.raises(StackError, match="timed out"):
        control_plane.kubectl(
            "wait", "--for=condition=Ready", "certificate/battery-7", "-n", "default",
            "--timeout=3s",
        )  # fmt: skip

    approval = {"type": "Approved", "status": "True", "reason": "Test", "message": "by the test"}
    control_plane.kubectl(
        "patch", "certificaterequest", "battery-7-1", "-n", "default", "--subresource=status",
        "--type=merge", "-p", json.dumps({"status": {"conditions": [approval]}}),
    )  # fmt: skip
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "certificate/battery-7", "-n", "default", "--timeout=30s"
    )

    pem = secret_data(control_plane, "default", "battery-7")["tls.crt"]
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://derops.test/ns/default/derasset/battery-7"
    ]


def test_the_headends_identities_are_issued_by_three_trusts(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    issued = issue(control_plane, "derops.test", tmp_path)

    authorities = {
        (issued.agent_port / "ca.crt").read_bytes(),
        (issued.control_port / "ca.crt").read_bytes(),
        issued.agent_ca.read_bytes(),
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


def test_the_chart_files_hold_one_place_for_the_trust_domain() -> None:
    certificates = identities.chart_manifests("pki-certificates.yaml", "pilot.example")

    uris = [uri for document in certificates for uri in document["spec"].get("uris", [])]
    assert uris == ["spiffe://pilot.example/operator"]
