"""A namespace of the cluster with assets: each agent is a StatefulSet with a simulated device."""

import json
from pathlib import PurePosixPath
from typing import Any

from tests.cluster import database
from tests.cluster.cluster import Cluster
from tests.cluster.pods import wait_for_pod
from tests.e2e.acting import Namespace, battery_manifest
from tests.stack.fleet import secret_name
from tests.stack.simulation import driver
from tests.waiting import eventually

AGENT_IMAGE = "derops/agent:0.1.0"
GATEWAY = "derops-gateway.derops-system.svc.cluster.local:8443"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TEST_LABEL = "derops.io/cluster-test"
"""Label of the namespaces that tests make, by which they are found and swept."""

_DATA = PurePosixPath("/data")
_UID = 65532


class Site(Namespace):
    """One namespace under Pod Security ``restricted``, whose agents are pods."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        super().__init__(cluster, namespace)
        self.cluster: Cluster = cluster

    def create_namespace(self) -> None:
        """Create it if it is not there."""
        self.cluster.apply(namespace_manifest(self.namespace, **{TEST_LABEL: "true"}))

    def delete_everything(self) -> None:
        """Delete it with all in it, also where derops and its kinds are gone already."""
        if "derops.io" in self.cluster.kubectl("api-resources", "--api-group=derops.io"):
            self.cluster.kubectl(
                "delete", "dispatches,derassets", "--all", "-n", self.namespace, "--timeout=90s"
            )
        self.cluster.kubectl(
            "delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=120s"
        )

    def battery(self, name: str = "battery", **spec: Any) -> dict[str, Any]:
        """Apply a 10 kW battery with its agent, and wait until it is connected."""
        self.apply(battery_manifest(name, **spec))
        self.start_agent(name)
        return self.get("derasset", name)

    def start_agent(self, name: str = "battery") -> None:
        """Apply the agent of an asset that exists, and wait until it is connected.

        Its Secret and the CA are awaited first: a kubelet looks for a missing one again only after
        up to two minutes.
        """
        for kind, mounted in (("secret", secret_name(name)), ("configmap", "derops-server-ca")):
            self._wait_for(kind, mounted)
        self.apply_all(agent_manifests(self.get("derasset", name)))
        self.wait_for_agent(name)

    def wait_for_agent(self, name: str = "battery", *, patience_seconds: float = 120) -> None:
        """Wait until the pod of an asset's agent is ready and its stream is open."""
        wait_for_pod(self.cluster, self.namespace, agent_pod(name), patience_seconds)
        self.wait_for_condition("derasset", name, "Connected", "True")

    def stop_agent(self, name: str = "battery") -> None:
        """Take the agent's pod away; its disk stays."""
        self.cluster.kubectl(
            "scale", f"statefulset/{name}-agent", "--replicas=0", "-n", self.namespace
        )
        self.cluster.kubectl(
            "wait", "--for=delete", f"pod/{agent_pod(name)}", "-n", self.namespace, "--timeout=60s"
        )

    def resume_agent(self, name: str = "battery") -> None:
        """Bring the pod back on its disk."""
        self.cluster.kubectl(
            "scale", f"statefulset/{name}-agent", "--replicas=1", "-n", self.namespace
        )
        self.wait_for_agent(name)

    def device_log(self, asset: str = "battery") -> list[dict[str, Any]]:
        file = _DATA / f"{self.namespace}_{asset}" / "device.writes.jsonl"
        text = self.cluster.run_in(agent_pod(asset), self.namespace, "cat", str(file))
        return [json.loads(line) for line in text.splitlines()]

    def samples(self, asset: str = "battery") -> list[dict[str, Any]]:
        """Return the telemetry of an asset as the database has it: ``at_us`` and ``watts``."""
        return database.rows(
            self.cluster,
            "select (extract(epoch from ts) * 1000000)::bigint as at_us, "
            "active_power_watts as watts from telemetry join asset using (asset_id) "
            f"where namespace = '{self.namespace}' and name = '{asset}' order by ts",
        )

    def history(self, dispatch: str) -> dict[str, Any] | None:
        """Return the line of ``dispatch_history`` about a dispatch."""
        found = database.rows(
            self.cluster,
            f"select * from dispatch_history where namespace = '{self.namespace}' "
            f"and dispatch_uid = '{self.get('dispatch', dispatch)['metadata']['uid']}'",
        )
        return found[0] if found else None

    def _wait_for(self, kind: str, name: str) -> None:
        eventually(
            lambda: self.cluster.kubectl(
                "get", kind, name, "-n", self.namespace, "--ignore-not-found", "-o", "name"
            ),
            f"{kind} {name} in {self.namespace}",
        )


def agent_pod(asset: str) -> str:
    """Return the pod that is the agent of an asset."""
    return f"{asset}-agent-0"


def namespace_manifest(name: str, **labels: str) -> dict[str, Any]:
    """Return a namespace in which ``restricted`` is enforced."""
    metadata = {"name": name, "labels": {**RESTRICTED, **labels}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def agent_manifests(asset: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the ConfigMap and the StatefulSet of an asset's agent."""
    name, namespace = asset["metadata"]["name"], asset["metadata"]["namespace"]
    configuration = {
        "gateways": [GATEWAY],
        "serverCAFile": "/server-ca/ca.crt",
        "dataDirectory": str(_DATA),
        "opsPort": 8083,
        "assets": [
            {
                "namespace": namespace,
                "name": name,
                "certificateDirectory": "/tls",
                "driver": driver(asset),
            }
        ],
    }
    metadata = {"name": f"{name}-agent"}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": dict(metadata),
            "data": {"agent.yaml": json.dumps(configuration)},  # JSON is YAML
        },
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",  # two agents of one asset at a time would be a clone
            "metadata": dict(metadata),
            "spec": _stateful_set(name),
        },
    ]


def _stateful_set(name: str) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/name": "derops",
        "app.kubernetes.io/component": "agent",
        "derops.io/asset": name,
    }
    volumes: dict[str, dict[str, Any]] = {
        "configuration": {"configMap": {"name": f"{name}-agent"}},
        "tls": {"secret": {"secretName": secret_name(name), "defaultMode": 0o440}},
        "server-ca": {"configMap": {"name": "derops-server-ca"}},
        "tmp": {"emptyDir": {}},
    }
    mounts = {
        "configuration": "/etc/derops",
        "tls": "/tls",
        "server-ca": "/server-ca",
        "tmp": "/tmp",
        "data": str(_DATA),
    }
    live = {"httpGet": {"path": "/livez", "port": 8083}}
    return {
        "serviceName": f"{name}-agent",
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": _UID,
                    "runAsGroup": _UID,
                    "fsGroup": _UID,
                    "fsGroupChangePolicy": "OnRootMismatch",
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "agent",
                        "image": AGENT_IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["--config", "/etc/derops/agent.yaml"],
                        "startupProbe": {**live, "periodSeconds": 1, "failureThreshold": 60},
                        "livenessProbe": {**live, "periodSeconds": 10},
                        "readinessProbe": {
                            "exec": {"command": ["/opt/derops/bin/ready", "8083"]},
                            "periodSeconds": 3,
                        },
                        "resources": {
                            "requests": {"cpu": "20m", "memory": "96Mi"},
                            "limits": {"memory": "256Mi"},
                        },
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [
                            {"name": volume, "mountPath": path} for volume, path in mounts.items()
                        ],
                    }
                ],
                "volumes": [{"name": volume, **source} for volume, source in volumes.items()],
            },
        },
        "volumeClaimTemplates": [
            {
                "metadata": {"name": "data"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "64Mi"}},
                },
            }
        ],
    }
