"""A Kubernetes control plane of one's own: etcd, API server, controllers, cert-manager."""

import base64
import json
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import yaml
from tests import pki
from tests.stack import build, kubeconfig, places
from tests.stack.processes import Process, http_ok

AGENT_ISSUER = "derops-agent"
"""The ClusterIssuer whose requests only the operator approves."""

CERT_MANAGER = "cert-manager"
"""The namespace of cert-manager, the release of its chart, and its ServiceAccount."""

_WEBHOOK = "cert-manager-webhook"
_CHART_VALUES = {
    "crds": {"enabled": False},
    "startupapicheck": {"enabled": False},
    # Requests to ClusterIssuers are for the operator to approve.
    "approveSignerNames": ["issuers.cert-manager.io/*"],
}
_CHART_KINDS = {
    "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding",
    "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
}  # fmt: skip
"""What of the chart is of use without nodes."""

_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "verbs": ["create", "update", "patch", "delete"],
            "resources": [{"group": "derops.io"}],
        },
        {"level": "None"},
    ],
}


class ControlPlane:
    """Real components on free loopback ports in a private directory; several can run at once."""

    def __init__(self, parent_directory: Path | None = None) -> None:
        self._parent_directory = parent_directory
        self._cleanup = ExitStack()
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it printed."""
        return kubeconfig.kubectl(self.binaries.kubectl, self.kubeconfig, *arguments, stdin=stdin)

    def apply(self, *manifests: object) -> None:
        """Apply manifests, server-side, in one call."""
        body = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))

    def service_account_kubeconfig(self, namespace: str, name: str) -> str:
        """Return the path of a kubeconfig with a token of that ServiceAccount and its rights."""
        token = self.kubectl("create", "token", name, "-n", namespace, "--duration=48h").strip()
        return kubeconfig.write(
            self.directory / f"{namespace}_{name}.kubeconfig",
            self.server,
            self._authority.pem,
            {"token": token},
        )

    def install_crds(self) -> None:
        """Install cert-manager's kinds and our own, and wait until the API server serves them."""
        self.kubectl("apply", "--server-side", "-f", str(self.binaries.certmanager_crds))
        own = places.REPOSITORY / "crds"
        if any(own.glob("*.yaml")):
            self.kubectl("apply", "--server-side", "-f", str(own))
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")

    def audit_events(self) -> list[dict[str, object]]:
        """Return each write to our kinds that the API server took, oldest first."""
        return [json.loads(line) for line in self._audit_log.read_text().splitlines()]

    def _start(self) -> None:
        self.binaries = build.binaries()
        self.directory = self._cleanup.enter_context(
            places.private_directory("controlplane", self._parent_directory)
        )
        self.directory.chmod(0o700)  # all of it runs as us
        self._audit_log = self.directory / "audit.jsonl"
        self._authority = pki.Authority("derops-stack")
        port, etcd_port = places.free_port(), places.free_port()
        self.server = f"https://127.0.0.1:{port}"
        self.kubeconfig = self._client("admin", "derops-admin", "system:masters")
        self._launch("etcd", self._etcd_command(etcd_port))
        apiserver = self._launch("kube-apiserver", self._apiserver_command(port, etcd_port))
        apiserver.wait_until(self._answers())
        self._launch("kube-controller-manager", self._controller_manager_command())
        self.install_crds()
        self.apply(*(_namespace(name) for name in (CERT_MANAGER, "derops-system")))
        self._start_certmanager()

    def _start_certmanager(self) -> None:
        """Start controllers and webhook as their chart would: with its rights, and no others."""
        port, health_port = places.free_port(), places.free_port()
        chart = self._certmanager_chart(f"https://127.0.0.1:{port}")
        self.apply(*(each for each in chart if not each["kind"].endswith("WebhookConfiguration")))
        webhook = self._launch(_WEBHOOK, self._webhook_command(port, health_port))
        webhook.wait_until(http_ok(f"http://127.0.0.1:{health_port}/livez"))
        self.apply(*(each for each in chart if each["kind"].endswith("WebhookConfiguration")))
        config = self.service_account_kubeconfig(CERT_MANAGER, CERT_MANAGER)
        self._launch(
            "cert-manager", [self.binaries.controlplane, "cert-manager", f"--kubeconfig={config}"]
        )

    def _certmanager_chart(self, webhook_url: str) -> list[dict[str, Any]]:
        """Return what cert-manager's own chart says of rights and webhooks.

        Its Service has no pods here, so the API server calls the webhook at ``webhook_url``.
        """
        rendered = subprocess.run(
            [
                self.binaries.controlplane, "render-chart",
                f"--chart={self.binaries.certmanager_chart}",
                f"--release={CERT_MANAGER}", f"--namespace={CERT_MANAGER}",
                f"--kube-version={build.KUBERNETES_VERSION}",
                f"--values={json.dumps(_CHART_VALUES)}",
            ],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        documents = [each for each in yaml.safe_load_all(rendered) if each]
        chart = [each for each in documents if each["kind"] in _CHART_KINDS]
        authority = base64.b64encode(self._authority.pem).decode()
        for document in chart:
            for webhook in document.get("webhooks", []):
                service = webhook["clientConfig"].pop("service")
                webhook["clientConfig"] = {
                    "url": f"{webhook_url}{service['path']}", "caBundle": authority
                }  # fmt: skip
        return chart

    def _launch(self, name: str, command: list[str]) -> Process:
        process = Process(name, command, directory=self.directory)
        self.processes[name] = process
        self._cleanup.callback(process.terminate)
        process.start()
        return process

    def _client(self, name: str, user: str, group: str = "") -> str:
        return kubeconfig.write(
            self.directory / f"{name}.kubeconfig",
            self.server,
            self._authority.pem,
            kubeconfig.certificate_user(self._authority.client(user, group)),
        )

    def _file(self, name: str, content: str | bytes) -> str:
        file = self.directory / name
        file.touch(mode=0o600)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    def _answers(self) -> Callable[[], bool]:
        trust = ssl.create_default_context(cadata=self._authority.pem.decode())
        trust.load_cert_chain(self._file("admin.pem", self._admin_pem()))

        def check() -> bool:
            try:
                with urllib.request.urlopen(
                    f"{self.server}/readyz", timeout=2, context=trust
                ) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        return check

    def _admin_pem(self) -> bytes:
        pair = self._authority.client("derops-admin", "system:masters")
        return pair.pem + pair.key

    def _etcd_command(self, port: int) -> list[str]:
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{places.free_port()}"
        data = f"--data-dir={self.directory / 'etcd'}"
        if prebuilt := self.binaries.envtest("etcd"):
            return [
                prebuilt,
                data,
                "--unsafe-no-fsync",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            ]
        return [
            self.binaries.controlplane,
            "etcd",
            data,
            f"--listen-client-url={client}",
            f"--listen-peer-url={peer}",
        ]

    def _apiserver_command(self, port: int, etcd_port: int) -> list[str]:
        serving = self._authority.server(["localhost", "kubernetes"], ["127.0.0.1", "10.0.0.1"])
        self._token_key = self._file("sa.key", pki.service_account_key())
        self._authority_file = self._file("ca.crt", self._authority.pem)
        prebuilt = self.binaries.envtest("kube-apiserver")
        program = [prebuilt] if prebuilt else [self.binaries.controlplane, "kube-apiserver"]
        return [
            *program,
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self.directory / 'apiserver'}",
            f"--client-ca-file={self._authority_file}",
            f"--tls-cert-file={self._file('apiserver.crt', serving.pem)}",
            f"--tls-private-key-file={self._file('apiserver.key', serving.key)}",
            f"--service-account-key-file={self._token_key}",
            f"--service-account-signing-key-file={self._token_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",  # loopback cannot be an endpoint
            f"--audit-policy-file={self._file('audit.json', json.dumps(_AUDIT_POLICY))}",
            f"--audit-log-path={self._audit_log}",
        ]

    def _controller_manager_command(self) -> list[str]:
        config = self._client("kube-controller-manager", "system:kube-controller-manager")
        return [
            self.binaries.controlplane,
            "kube-controller-manager",
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            f"--service-account-private-key-file={self._token_key}",
            f"--root-ca-file={self._authority_file}",
            "--use-service-account-credentials",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            "--leader-elect=false",
        ]

    def _webhook_command(self, port: int, health_port: int) -> list[str]:
        serving = self._authority.server([_WEBHOOK], ["127.0.0.1"])
        return [
            self.binaries.controlplane,
            "cert-manager-webhook",
            f"--kubeconfig={self.service_account_kubeconfig(CERT_MANAGER, _WEBHOOK)}",
            f"--secure-port={port}",
            f"--healthz-port={health_port}",
            "--metrics-listen-address=0",
            f"--tls-cert-file={self._file('webhook.crt', serving.pem)}",
            f"--tls-private-key-file={self._file('webhook.key', serving.key)}",
        ]


def _namespace(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
