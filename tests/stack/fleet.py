"""Agents of the stack. The stack plays installer: each DERAsset gets a simulated device.

An agent starts when the Secret with its certificate is there, and the ConfigMap with the server CA
beside it, as a pod would. It ends when its
asset is gone. What it wrote to disk stays, as it would on a device: an asset of the same name that
is created later finds it. An asset annotated ``derops.io/agent: none`` gets no agent.
"""

import base64
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kubernetes
from tests.stack import places
from tests.stack.identities import AGENT_CA, SERVER_CA
from tests.stack.mounts import write_mount
from tests.stack.processes import Process, StackError, http_ok
from tests.stack.simulation import (
    Site,
    certificate_directory,
    server_ca_directory,
    write_agent_file,
)

ANNOTATION = "derops.io/agent"
LOOK_SECONDS = 0.5

AgentName = tuple[str, str]
"""Namespace and name of the asset."""


Contents = dict[AgentName, dict[str, bytes]]
"""What Secrets or ConfigMaps hold, by namespace and name."""


def secret_name(asset: str) -> str:
    """Return the Secret that the operator has cert-manager fill for an asset."""
    return f"{asset}-derops-agent"


class Agent:
    """One agent process with the assets that it hosts."""

    def __init__(
        self, directory: Path, site: Site, assets: Sequence[dict[str, Any]], programs: Path
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / "data").mkdir(mode=0o700, exist_ok=True)
        self.assets = assets
        self.server_ca_directory = server_ca_directory(directory)
        self._namespace = str(assets[0]["metadata"]["namespace"])
        """Where its pod is; one pod may host assets of several namespaces."""

        self.ops_port = places.free_port()
        file = write_agent_file(directory, site, assets, self.ops_port)
        self.process = Process(
            f"agent/{directory.name}",
            [str(programs / "derops-agent"), "--config", str(file)],
            directory=directory,
        )
        self._mounts = {
            _key(asset["metadata"]): certificate_directory(directory, asset) for asset in assets
        }

    @property
    def names(self) -> set[AgentName]:
        return set(self._mounts)

    def mount(self, secrets: Contents, config_maps: Contents) -> bool:
        """Bring what is mounted up to date; tell whether all is there."""
        data = config_maps.get((self._namespace, SERVER_CA))
        if data and data.get("ca.crt"):
            write_mount(self.server_ca_directory, {"ca.crt": data["ca.crt"]})
        there = (self.server_ca_directory / "ca.crt").exists()
        for (namespace, name), directory in self._mounts.items():
            data = secrets.get((namespace, secret_name(name)))
            if data and data.get("tls.crt"):
                write_mount(directory, data)
            else:
                there = there and (directory / "tls.crt").exists()
        return there


class Fleet:
    """Watches DERAssets and Secrets and keeps the agents in step, from a thread of its own.

    Args:
        kubeconfig: The administrator's.
        site: What all agents are told.
        directory: Where they live.
        follow: Given all Secrets of certificates, and the ConfigMaps of the authorities, at each
            look, for mounts that are no agent's.
        programs: Where the command of the agents is; by default of this tree.
    """

    def __init__(
        self,
        kubeconfig: str,
        site: Site,
        directory: Path,
        follow: Callable[[Contents, Contents], object] = lambda *_: None,
        programs: Path = Path(sys.executable).parent,
    ) -> None:
        self._site, self._follow_mounts, self._programs = site, follow, programs
        self._directory = directory
        self._agents: dict[AgentName, Agent] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._client = kubernetes.config.new_client_from_config(kubeconfig)
        self._objects = kubernetes.client.CustomObjectsApi(self._client)
        self._core = kubernetes.client.CoreV1Api(self._client)
        self._thread = threading.Thread(target=self._watch, name="fleet")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End all agents, at the same time."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        threads = [
            threading.Thread(target=agent.process.terminate)
            for agent in {id(agent): agent for agent in self._agents.values()}.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._client.close()

    def agents(self) -> dict[str, Agent]:
        """Return the agents by ``namespace/name`` of their assets."""
        with self._lock:
            return {f"{ns}/{name}": agent for (ns, name), agent in self._agents.items()}

    def get(self, namespace: str, name: str) -> Agent:
        with self._lock:
            if (namespace, name) not in self._agents:
                raise StackError(f"{namespace}/{name} has no agent; running: {[*self.agents()]}")
            return self._agents[namespace, name]

    def host(self, names: Sequence[AgentName], label: str) -> Agent:
        """Start one process that is the agent of all ``names``, which must exist.

        The assets carry the annotation that keeps single agents away. Waits for their Secrets.
        """
        wanted = set(names)
        assets = [asset for asset in self._list_assets() if _key(asset["metadata"]) in wanted]
        agent = Agent(self._directory / label, self._site, assets, self._programs)
        while not agent.mount(self._list_secrets(), self._list_config_maps()):
            if self._stopping.wait(LOOK_SECONDS):
                raise StackError("the fleet was stopped")
        with self._lock:
            self._agents |= dict.fromkeys(agent.names, agent)
        agent.process.start()
        agent.process.wait_until(http_ok(f"http://127.0.0.1:{agent.ops_port}/livez"))
        return agent

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                assets = {_key(asset["metadata"]): asset for asset in self._list_assets()}
                secrets, config_maps = self._list_secrets(), self._list_config_maps()
            except Exception as error:  # the API server may be away: that is a test's business
                print(f"fleet: {type(error).__name__}: {error}", flush=True)
                continue
            self._follow_mounts(secrets, config_maps)
            with self._lock:
                self._follow(assets, secrets, config_maps)

    def _follow(
        self,
        assets: dict[AgentName, dict[str, Any]],
        secrets: Contents,
        config_maps: Contents,
    ) -> None:
        for key in [key for key in self._agents if key not in assets]:
            agent = self._agents.pop(key)
            if agent not in self._agents.values():
                threading.Thread(target=agent.process.terminate).start()
        for key, asset in assets.items():
            wants_none = asset["metadata"].get("annotations", {}).get(ANNOTATION) == "none"
            if key not in self._agents and not wants_none:
                directory = self._directory / "_".join(key)
                self._agents[key] = Agent(directory, self._site, [asset], self._programs)
        for agent in {id(agent): agent for agent in self._agents.values()}.values():
            if agent.mount(secrets, config_maps) and not agent.process.started:
                agent.process.start()

    def _list_assets(self) -> list[dict[str, Any]]:
        answer = self._objects.list_cluster_custom_object(
            "derops.io", "v1alpha1", "derassets", _preload_content=False
        )
        items: list[dict[str, Any]] = json.loads(answer.data)["items"]
        return items

    def _list_config_maps(self) -> Contents:
        found: Contents = {}
        for name in (SERVER_CA, AGENT_CA):
            answer = self._core.list_config_map_for_all_namespaces(
                field_selector=f"metadata.name={name}", _preload_content=False
            )
            for each in json.loads(answer.data)["items"]:
                data = each.get("data", {})
                found[_key(each["metadata"])] = {key: data[key].encode() for key in data}
        return found

    def _list_secrets(self) -> Contents:
        answer = self._core.list_secret_for_all_namespaces(
            field_selector="type=kubernetes.io/tls", _preload_content=False
        )
        return {
            _key(secret["metadata"]): {
                key: base64.b64decode(value) for key, value in secret.get("data", {}).items()
            }
            for secret in json.loads(answer.data)["items"]
        }


def _key(metadata: dict[str, Any]) -> AgentName:
    return metadata["namespace"], metadata["name"]
