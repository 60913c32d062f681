"""The headend as real processes, without a control plane: the field is played, see ``sender``."""

import re
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from tests.pki import SERVER, TRUST_DOMAIN, Authority, Leaf
from tests.stack import places
from tests.stack.processes import Process, http_ok

from derops.wire.v1 import control_pb2, control_pb2_grpc, dispatch_pb2
from derops_operator.gateways.link import MAX_BATCH

NAMESPACE = "field"
BATTERY_FACTS: dict[str, Any] = {
    "type": "Battery",
    "limit_max_injection_watts": 5000,
    "limit_max_absorption_watts": 5000,
    "max_dispatch_duration_seconds": 3600,
    "fallback_active_power_watts": 0,
    "on_comms_loss": "Continue",
    "on_restart": "Resume",
    "telemetry_interval_seconds": 1,
    "operating_state": "InService",
    "on_exceed": "Reject",
}
"""What every asset of the field is."""

_CONTROL_NAME = "derops-gateway-control"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldAsset:
    """An asset with the certificate of its agent."""

    uid: str
    name: str
    leaf: Leaf


class PlayedOperator:
    """What the operator says on its stream, and what it hears."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._version = 0
        self._heard: deque[control_pb2.ReplicaMessage] = deque()

    async def say(self, **kind: Any) -> int:
        """Send a message and return its version."""
        self._version += 1
        await self._call.write(control_pb2.OperatorMessage(version=self._version, **kind))
        return self._version

    async def say_all(self, kinds: Iterable[Mapping[str, Any]]) -> int:
        """Send messages in batches, as the operator does; return the last version."""
        messages = []
        for kind in kinds:
            self._version += 1
            messages.append(control_pb2.OperatorMessage(version=self._version, **kind))
        for first in range(0, len(messages), MAX_BATCH):
            batch = control_pb2.OperatorBatch(messages=messages[first : first + MAX_BATCH])
            await self._call.write(control_pb2.OperatorMessage(batch=batch))
        return self._version

    async def hear(self) -> control_pb2.ReplicaMessage:
        """Wait for the next message of the replica."""
        while not self._heard:
            message = await self._call.read()
            self._heard.extend(message.batch.messages or [message])
        return self._heard.popleft()

    async def accepted(self, version: int) -> None:
        """Wait until the replica has stored a version, and with it all before."""
        while (await self.hear()).accepted_version < version:
            pass

    async def report(self, dispatch_uid: str) -> dispatch_pb2.DispatchReport:
        """Wait for a report on a dispatch."""
        while True:
            message = await self.hear()
            if message.report.report.dispatch_uid == dispatch_uid:
                return message.report.report


class FieldHeadend:
    """Gateway and writer with their own PKI, and a desired state of many assets.

    Args:
        directory: Where data, certificates and logs go.
        assets: How many there are.
        database_url: An empty database, or one of an earlier headend.
        environment: Settings of both programs beyond what they need to run.
        data_directory: Where event log and desired state lie; by default in ``directory``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        assets: int,
        database_url: str,
        environment: Mapping[str, str] | None = None,
        data_directory: Path | None = None,
    ) -> None:
        self.directory = directory
        self.data_directory = data_directory or directory / "data"
        self.data_directory.mkdir(exist_ok=True)
        self.server_ca, self.agent_ca = Authority("server"), Authority("agent")
        self._control_ca = Authority("control")
        self._operator = self._control_ca.leaf(
            [x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/operator")]
        )
        self.assets = [self._make_asset(number) for number in range(assets)]
        self._cleanup = ExitStack()
        self._ops = {part: places.free_port() for part in ("gateway", "writer")}
        self._control_port = places.free_port()
        self.gateway_address = f"127.0.0.1:{places.free_port()}"
        """Where agents dial."""
        self.parts = self._define(database_url, dict(environment or {}))

    def __enter__(self) -> Self:
        try:
            for part in self.parts:
                self._cleanup.callback(self.parts[part].terminate)
                self.parts[part].start()
            self.parts["gateway"].wait_until(http_ok(self._url("gateway", "livez")))
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    async def give_desired_state(self) -> None:
        """Play the operator for a moment: the gateway keeps what it is told on its disk."""
        async with self.operator():
            pass

    @asynccontextmanager
    async def operator(self) -> AsyncIterator["PlayedOperator"]:
        """Play the operator: yield a stream on which the gateway has accepted all assets."""
        channel = grpc.aio.secure_channel(
            f"127.0.0.1:{self._control_port}",
            grpc.ssl_channel_credentials(
                self._control_ca.pem, self._operator.key, self._operator.pem
            ),
            options=[("grpc.ssl_target_name_override", _CONTROL_NAME)],
        )
        async with channel:
            call = control_pb2_grpc.ControlStub(channel).Sync(wait_for_ready=True)  # type: ignore[no-untyped-call]
            operator = PlayedOperator(call)
            begin = control_pb2.SnapshotBegin(
                operator_start_ms=time.time_ns() // 10**6, takes_batches=True
            )
            await operator.say(snapshot_begin=begin)
            for asset in self.assets:
                message = dispatch_pb2.Asset(
                    id=dispatch_pb2.AssetId(uid=asset.uid, namespace=NAMESPACE, name=asset.name),
                    generation=1,
                    **BATTERY_FACTS,
                    identity=dispatch_pb2.IdentityLedger(current=asset.leaf.known),
                )
                await operator.say(asset=message)
            end = control_pb2.SnapshotEnd(assets=len(self.assets))
            last = await operator.say(snapshot_end=end)
            await operator.accepted(last)
            yield operator

    def start(self, part: str) -> None:
        """Start a part that ended, and wait until it listens."""
        self.parts[part].start()
        self.wait_live(part)

    def wait_live(self, part: str) -> None:
        """Wait until a part listens."""
        self.parts[part].wait_until(http_ok(self._url(part, "livez")))

    def wait_ready(self, part: str) -> None:
        """Wait until a part has all that it needs."""
        self.parts[part].wait_until(http_ok(self._url(part, "readyz")))

    def readiness(self, part: str) -> str:
        """Return what a part says of what it needs."""
        try:
            with urllib.request.urlopen(self._url(part, "readyz"), timeout=30) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def metrics(self, part: str) -> dict[str, float]:
        """Return the metrics of a part that have no labels."""
        with urllib.request.urlopen(self._url(part, "metrics"), timeout=30) as answer:
            text: str = answer.read().decode()
        rows = re.findall(r"^(derops_\w+) ([-+\d.eE]+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in rows}

    def _url(self, part: str, path: str) -> str:
        return f"http://127.0.0.1:{self._ops[part]}/{path}"

    def _make_asset(self, number: int) -> FieldAsset:
        name = f"asset-{number}"
        return FieldAsset(uid=f"uid-{number}", name=name, leaf=self._agent_leaf(name))

    def _agent_leaf(self, name: str) -> Leaf:
        uri = f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/derasset/{name}"
        return self.agent_ca.leaf([x509.UniformResourceIdentifier(uri)])

    def _define(self, database_url: str, environment: dict[str, str]) -> dict[str, Process]:
        agent_tls = self._write_tls("agent-port", self.server_ca, "derops-gateway")
        control_tls = self._write_tls("control-port", self._control_ca, _CONTROL_NAME)
        (control_tls / "ca.crt").write_bytes(self._control_ca.pem)
        (self.directory / "agents.crt").write_bytes(self.agent_ca.pem)
        (self.directory / "operator.crt").write_bytes(self._operator.pem)
        settings: dict[str, dict[str, Any]] = {
            "gateway": {
                "AGENT_LISTEN": self.gateway_address,
                "AGENT_TLS_DIRECTORY": agent_tls,
                "AGENT_CA_FILE": self.directory / "agents.crt",
                "CONTROL_LISTEN": f"127.0.0.1:{self._control_port}",
                "CONTROL_TLS_DIRECTORY": control_tls,
                "OPERATOR_CERTIFICATE_FILE": self.directory / "operator.crt",
                "TRUST_DOMAIN": TRUST_DOMAIN,
                "REPLICA": "gateway-0",
            },
            "writer": {"DATABASE_URL": database_url},
        }
        return {
            part: Process(
                part,
                [str(Path(sys.executable).parent / "derops-headend"), part],
                directory=self.directory,
                environment={
                    f"DEROPS_{part.upper()}_{name}": str(value)
                    for name, value in {
                        **own,
                        "DATA_DIRECTORY": self.data_directory,
                        "OPS_ADDRESS": "127.0.0.1",
                        "OPS_PORT": self._ops[part],
                    }.items()
                }
                | environment,
            )
            for part, own in settings.items()
        }

    def _write_tls(self, folder: str, authority: Authority, name: str) -> Path:
        directory = self.directory / folder
        directory.mkdir(exist_ok=True)
        leaf = authority.leaf([x509.DNSName(name)], usages=SERVER)
        (directory / "tls.crt").write_bytes(leaf.pem)
        (directory / "tls.key").write_bytes(leaf.key)
        return directory
