"""Issuers and the identities of operator and headend: the chart's manifests, by cert-manager."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.stack import places
from tests.stack.controlplane import ControlPlane
from tests.stack.mounts import write_mount

OPERATOR_SECRET = ("derops-system", "derops-operator-tls")
CHART_FILES = places.REPOSITORY / "charts" / "derops" / "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Directories and files as the pods of operator and gateway would see them mounted."""

    agent_port: Path
    control_port: Path
    operator: Path
    operator_certificate: Path
    """At the gateway: the operator's certificate without its key."""

    agent_ca: Path
    server_ca: Path

    def follow(self, secrets: Mapping[tuple[str, str], Mapping[str, bytes]]) -> None:
        """Bring the mounts of the operator's Secret up to date; keys are namespace and name."""
        data = secrets.get(OPERATOR_SECRET)
        if data and data.get("tls.crt"):
            write_mount(self.operator, data)
            write_mount(self.operator_certificate.parent, {"tls.crt": data["tls.crt"]})


def chart_manifests(name: str, trust_domain: str) -> list[Any]:
    """Return the documents of one of the chart's files, with its only value filled in."""
    text = (CHART_FILES / name).read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text.replace("{{ .Values.trustDomain }}", trust_domain)))


def install_issuers(control_plane: ControlPlane) -> None:
    """Create the three CAs with their ClusterIssuers and wait until all can sign."""
    control_plane.apply(*chart_manifests("pki-issuers.yaml", trust_domain=""))
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "clusterissuer", "--all", "--timeout=60s"
    )


def issue(control_plane: ControlPlane, trust_domain: str, directory: Path) -> Identities:
    """Let cert-manager issue the identities and mount them below ``directory``."""
    install_issuers(control_plane)
    control_plane.apply(*chart_manifests("pki-certificates.yaml", trust_domain))
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "certificate", "--all", "-n", "derops-system",
        "--timeout=60s",
    )  # fmt: skip

    def mount(namespace: str, secret: str, *keys: str, folder: str = "") -> Path:
        target = directory / (folder or secret)
        data = secret_data(control_plane, namespace, secret)
        write_mount(target, {key: data[key] for key in keys or data})
        return target

    return Identities(
        agent_port=mount("derops-system", "derops-gateway-tls"),
        control_port=mount("derops-system", "derops-gateway-control-tls"),
        operator=mount(*OPERATOR_SECRET),
        operator_certificate=mount(*OPERATOR_SECRET, "tls.crt", folder="operator-certificate")
        / "tls.crt",
        agent_ca=mount("cert-manager", "derops-agent-ca", "ca.crt") / "ca.crt",
        server_ca=mount("cert-manager", "derops-server-ca", "ca.crt") / "ca.crt",
    )


def secret_data(control_plane: ControlPlane, namespace: str, name: str) -> dict[str, bytes]:
    """Return what a Secret holds."""
    secret = json.loads(control_plane.kubectl("get", "secret", name, "-n", namespace, "-o", "json"))
    return {key: base64.b64decode(value) for key, value in secret["data"].items()}
