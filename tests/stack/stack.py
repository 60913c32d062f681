"""The whole product, running."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from tests.stack import identities, places
from tests.stack.calling import Caller
from tests.stack.controlplane import AGENT_ISSUER, ControlPlane
from tests.stack.fleet import Fleet
from tests.stack.identities import Identities
from tests.stack.postgres import API, PostgresServer
from tests.stack.processes import Process, http_ok
from tests.stack.simulation import Site

from derops_headend.storage.roles import roles_sql

PARTS = ("operator", "gateway", "writer", "api")
"""What ``kill`` and ``restart`` take."""

TRUST_DOMAIN = "derops.test"
OWN_PROGRAMS = Path(sys.executable).parent

_KEEPER_SECONDS = 1.0


class Stack:
    """Control plane, database, operator, gateway, writer, API, and an agent for each DERAsset.

    Args:
        keep_alive: Start again what died by itself, as a kubelet would. Tests leave it off, so that
            an accident is seen.
        say: Told what is being started.
        programs: Where the commands of a part, or of ``agent``, are; by default of this tree.
    """

    def __init__(
        self,
        *,
        keep_alive: bool = False,
        say: Callable[[str], None] = lambda _: None,
        programs: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self._programs = programs
        self._keep_alive = keep_alive
        self._say = say
        self._cleanup = ExitStack()
        self._stopping = threading.Event()
        self.parts: dict[str, Process] = {}
        self.ops_ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def kubeconfig(self) -> str:
        """The administrator's."""
        return self.control_plane.kubeconfig

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it printed."""
        return self.control_plane.kubectl(*arguments, stdin=stdin)

    def caller(self, namespace: str, account: str) -> Caller:
        """Return a ServiceAccount as it calls the API."""
        return Caller(
            self.kubectl, (namespace, account), self.api_url, self.identities.server_ca.read_text()
        )

    def kill(self, part: str) -> None:
        """End a part as a power cut would."""
        self.parts[part].kill()

    def restart(self, part: str) -> None:
        """Start a part that ended, and wait until it is ready."""
        self.parts[part].start()
        self._wait_ready(part)

    def kill_agent(self, namespace: str, name: str) -> None:
        """End the agent of an asset as a power cut would."""
        self.fleet.get(namespace, name).process.kill()

    def restart_agent(self, namespace: str, name: str) -> None:
        """Start the agent of an asset again, with the disk that it left."""
        agent = self.fleet.get(namespace, name)
        agent.process.start()
        agent.process.wait_until(http_ok(_url(agent.ops_port, "livez")))

    def describe(self) -> dict[str, Any]:
        """Return what a person or a program outside needs to know, as in build/stack.json."""
        agents = self.fleet.agents()
        processes = {
            **self.control_plane.processes,
            "postgres": self.postgres.process,
            **self.parts,
            **{f"agent/{name}": agent.process for name, agent in agents.items()},
        }
        return {
            "kubeconfig": self.kubeconfig,
            "kubectl": self.control_plane.binaries.kubectl,
            "databaseURL": self.database_url,
            "gateway": self.gateway,
            "api": {
                "url": self.api_url,
                "caFile": str(self.identities.server_ca),
                "token": "kubectl create token ACCOUNT -n NAMESPACE --audience=derops-api",
            },
            "trustDomain": TRUST_DOMAIN,
            "metrics": {
                **{part: _url(port, "metrics") for part, port in self.ops_ports.items()},
                "agent": {name: _url(agent.ops_port, "metrics") for name, agent in agents.items()},
            },
            "processes": {
                name: process.pid for name, process in processes.items() if process.started
            },
            "dataDirectory": str(self.data_directory),
        }

    def _start(self) -> None:
        enter = self._cleanup.enter_context
        self.data_directory: Path = enter(places.private_directory("stack"))
        self._say("starting the control plane: etcd, kube-apiserver, controllers, cert-manager")
        self.control_plane = enter(ControlPlane(self.data_directory))
        self._say("starting PostgreSQL")
        self.postgres = enter(PostgresServer(self.data_directory))
        self._say(f"PostgreSQL is that of {self.postgres.installation}")
        self.database_url = self.postgres.create_for_roles("derops", roles_sql())
        self._say("issuing the identities of operator, gateway and API")
        self.identities = identities.issue(
            self.control_plane, TRUST_DOMAIN, self.data_directory / "identities"
        )
        self.control_plane.apply(*identities.chart_manifests("roles.yaml"))
        self._say("starting gateway, writer, operator and API")
        self._cleanup.callback(self._end_parts)
        self._define_parts(self.identities)
        operator = self.parts["operator"]
        operator.start()
        # As a kubelet does, which starts no pod before its ConfigMap is there.
        operator.wait_until(lambda: identities.mount_agent_ca(self.control_plane, self.identities))
        for part in PARTS:
            if part != "operator":
                self.parts[part].start()
        for part in PARTS:
            self._wait_ready(part)
        self._say("watching for DERAssets: each gets a simulated device with an agent")
        self.fleet = Fleet(
            self.kubeconfig,
            Site(gateway=self.gateway),
            self.data_directory / "agents",
            follow=self.identities.follow,
            programs=self._programs.get("agent", OWN_PROGRAMS),
        )
        self.fleet.start()
        self._cleanup.callback(self.fleet.stop)
        if self._keep_alive:
            keeper = threading.Thread(target=self._keep, name="keeper")
            keeper.start()
            self._cleanup.callback(keeper.join)
            self._cleanup.callback(self._stopping.set)

    def _define_parts(self, issued: Identities) -> None:
        agent_port, control_port = places.free_port(), places.free_port()
        self.gateway = f"127.0.0.1:{agent_port}"
        headend_data = self.data_directory / "headend"
        headend_data.mkdir(mode=0o700)
        self._define(
            "gateway",
            "derops-headend gateway",
            AGENT_LISTEN=self.gateway,
            AGENT_TLS_DIRECTORY=issued.agent_port,
            AGENT_CA_FILE=issued.agent_ca,
            CONTROL_LISTEN=f"127.0.0.1:{control_port}",
            CONTROL_TLS_DIRECTORY=issued.control_port,
            OPERATOR_CERTIFICATE_FILE=issued.operator_certificate,
            DATA_DIRECTORY=headend_data,
            TRUST_DOMAIN=TRUST_DOMAIN,
            REPLICA="gateway-0",
        )
        self._define(
            "writer",
            "derops-headend writer",
            DATABASE_URL=self.database_url,
            DATA_DIRECTORY=headend_data,
        )
        self._define(
            "operator",
            "derops-operator",
            GATEWAYS=f"127.0.0.1:{control_port}",
            CONTROL_TLS_DIRECTORY=issued.operator,
            SERVER_CA_FILE=issued.server_ca,
            TRUST_DOMAIN=TRUST_DOMAIN,
            AGENT_ISSUER=AGENT_ISSUER,
        )
        api_port = places.free_port()
        self.api_url = f"https://localhost:{api_port}"
        api_data = self.data_directory / "api"
        api_data.mkdir(mode=0o700)
        self._define(
            "api",
            "derops-headend api",
            LISTEN=f"127.0.0.1:{api_port}",
            TLS_DIRECTORY=issued.api,
            DATABASE_URL=self.postgres.url("derops", API),
            DATA_DIRECTORY=api_data,
            REPLICA="api-0",
        )
        for part in ("operator", "api"):
            self.parts[part].environment["KUBECONFIG"] = identities.program_kubeconfig(
                self.control_plane, part
            )

    def _define(self, part: str, command: str, **settings: object) -> None:
        self.ops_ports[part] = places.free_port()
        settings |= {"OPS_ADDRESS": "127.0.0.1", "OPS_PORT": self.ops_ports[part]}
        program, *arguments = command.split()
        self.parts[part] = Process(
            part,
            [str(self._programs.get(part, OWN_PROGRAMS) / program), *arguments],
            directory=self.data_directory,
            environment={
                f"DEROPS_{part.upper()}_{name}": str(value) for name, value in settings.items()
            },
        )

    def _wait_ready(self, part: str) -> None:
        self.parts[part].wait_until(http_ok(_url(self.ops_ports[part], "readyz")))

    def _end_parts(self) -> None:
        for part in reversed(PARTS):
            self.parts[part].terminate()

    def _keep(self) -> None:
        """Start again what died by itself."""
        while not self._stopping.wait(_KEEPER_SECONDS):
            processes = [*self.parts.values()]
            processes += [agent.process for agent in self.fleet.agents().values()]
            for process in processes:
                if process.started and process.wanted and not process.alive:
                    self._say(f"{process.name} died, starting it again")
                    process.start()


def _url(port: int, path: str) -> str:
    return f"http://127.0.0.1:{port}/{path}"


def write_description(file: Path, description: dict[str, Any]) -> None:
    """Write build/stack.json so that a reader sees the old or the new one, never half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".part")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(description, indent=2) + "\n")
    fresh.replace(file)
