"""Two tenants on one gateway, with the operator's own code, and a database at the end of the log.

There is no API server: what the operator would write into status is asked for instead.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, cast

import psycopg
from cryptography import x509
from tests.headend.gateway.rig import Agent, Rig, now_us
from tests.headend.writing.making import sources
from tests.pki import Leaf, uri_of
from tests.waiting import until

from derops.observability import Readiness
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_headend.storage.database import WriterDatabase
from derops_operator.controller import Controller
from derops_operator.gateways.assignment import give_asset
from derops_operator.resources.instants import format_second
from derops_operator.resources.objects import FINALIZER, Kind
from derops_operator.settings import OperatorSettings

VICTIM, THIEF = ("pilot", "battery"), ("other", "thief")
Name = tuple[str, str]


class Speaker(Agent):
    """An agent that says what it likes, with a certificate of its own."""

    sequence = 0

    async def say(self, report: dispatch_pb2.DispatchReport) -> None:
        """Say it as a report of this stream's ledger."""
        told = dispatch_pb2.DispatchReport()
        told.CopyFrom(report)
        self.sequence += 1
        told.sequence, told.ledger_id = self.sequence, self.ledger_id
        await self.send(agent_pb2.AgentMessage(report=told))

    async def acknowledged(self) -> None:
        """Wait until what it said last is acknowledged."""
        while (await self.read_until("report_ack")).sequence < self.sequence:
            pass

    async def heard(self) -> list[str]:
        """Return the kinds of what was answered; nothing is on its way any more."""
        sent_us = now_us()
        await self.send(
            agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=sent_us))
        )
        kinds: list[str] = []
        while (message := await self.read()).heartbeat_reply.agent_sent_us != sent_us:
            kinds.append(str(message.WhichOneof("kind")))
        return kinds


class Tenants:
    """The victim's battery and the thief's, each with a certificate and an agent."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.rig = Rig(directory)
        self._directory, self._url = directory, database_url
        self._leaves: dict[Name, Leaf] = {}
        self._stored = self._offset = self._versions = 0

    async def start(self) -> None:
        """Start the gateway, and make an operator that knows the assets."""
        await self.rig.start()
        assert self.rig.gateway is not None
        leaf = self.rig.operator_leaf
        for name, body in (
            ("tls.crt", leaf.pem), ("tls.key", leaf.key), ("ca.crt", self.rig.control_ca.pem)
        ):  # fmt: skip
            (self._directory / name).write_bytes(body)
        settings = OperatorSettings(
            gateways=(f"127.0.0.1:{self.rig.gateway.control_port}",),
            control_tls_directory=self._directory,
            server_ca_file=self._directory / "ca.crt",
            trust_domain="derops.test",
        )
        self.controller = Controller(settings, cast("Any", None), Readiness())
        self._asset(VICTIM)
        self._asset(THIEF)

    async def run(self) -> None:
        """Connect the operator to the gateway; what it knows by now is its first list."""
        self.controller.core.load()
        self._task = asyncio.create_task(self.controller._gateways.run())
        await until(lambda: self.controller.core.fleet.accepted_version() > 0)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.rig.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # What there is

    def _asset(self, name: Name) -> None:
        uri = x509.UniformResourceIdentifier(uri_of(name[1], name[0]))
        leaf = self._leaves[name] = self.rig.agent_ca.leaf([uri])
        known = {
            "serialNumber": leaf.known.serial_number,
            "publicKeySHA256": leaf.known.public_key_sha256,
        }
        ratings = {"maxInjectionWatts": 10_000, "maxAbsorptionWatts": 10_000}
        manifest = {
            "metadata": self._metadata(name, uid_of(name)),
            "spec": {"type": "Battery", "ratings": {**ratings, "energyCapacityWattHours": 20_000}},
            "status": {"identity": {"current": known}},
        }
        self.controller.core.take(Kind.ASSET, manifest)
        asset = self.controller.core.cache.asset(*name)
        assert asset is not None
        give_asset(self.controller.core.desired, asset)

    def dispatch(
        self,
        uid: str,
        asset: Name = VICTIM,
        *,
        starts_in_seconds: int = 0,
        created_ago_seconds: int = 1,
        seconds: int = 600,
        **others: Any,
    ) -> None:
        """Have a Dispatch of 5 kW in flight, as after its submission."""
        start_us = now_us() + starts_in_seconds * SECOND_US
        created_us = min(now_us(), start_us) - created_ago_seconds * SECOND_US
        manifest = {
            "metadata": self._metadata((asset[0], uid), uid, created_us)
            | {"finalizers": [FINALIZER]},
            "spec": {
                "assetRef": {"name": asset[1]},
                "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
                "startTime": format_second(start_us),
                "durationSeconds": seconds,
                **others,
            },
            "status": {},
        }
        self.controller.core.take(Kind.DISPATCH, manifest)
        self.look(asset[0], uid)

    def look(self, namespace: str, name: str) -> dict[str, Any]:
        """Have the operator decide, and its status stored; return that."""
        dispatch = self.controller.core.cache.dispatch(namespace, name)
        assert dispatch is not None
        asset = self.controller.core.cache.asset(namespace, dispatch.asset_name)
        decided = self.controller.core.decide(dispatch, asset).status
        status: dict[str, Any] = json.loads(json.dumps(decided))  # as the API server gives it back
        manifest = {
            "metadata": self._metadata((namespace, name), name, dispatch.meta.created_us)
            | {"finalizers": [FINALIZER]},
            "spec": {
                "assetRef": {"name": dispatch.asset_name},
                "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
                "startTime": format_second(dispatch.start_us),
                "durationSeconds": dispatch.duration_seconds,
            },
            "status": status,
        }
        self.controller.core.take(Kind.DISPATCH, manifest)
        return status

    def _metadata(self, name: Name, uid: str, created_us: int = 0) -> dict[str, Any]:
        self._versions += 1
        return {
            "namespace": name[0],
            "name": name[1],
            "uid": uid,
            "generation": 1,
            "resourceVersion": str(self._versions),
            "creationTimestamp": format_second(created_us or now_us() - 86_400 * SECOND_US),
        }

    # Who speaks

    async def agent(self, name: Name, *, epoch: int = 1, ledger_id: str = "") -> Speaker:
        """Connect with the certificate of an asset."""
        peer = self.rig.agent(self._leaves[name])
        speaker = Speaker(peer.channel, peer.call)
        speaker.ledger_id = ledger_id or f"ledger-of-{name[1]}"
        await speaker.connect(epoch)
        return speaker

    async def operator_heard_all(self) -> None:
        """Wait until the operator has heard what the gateway had to say so far."""
        version = self.controller.core.desired.version + 1
        asset = self.controller.core.cache.asset(*VICTIM)
        assert asset is not None
        identity = dict(asset.status["identity"])
        mark = {"serialNumber": f"{time.time_ns():x}", "publicKeySHA256": "0" * 64}
        give_asset(self.controller.core.desired, asset, identity | {"next": mark})
        await until(lambda: self.controller.core.fleet.accepted_version() >= version)

    # What became of it

    def store(self) -> None:
        """Have a writer store what is in the log since the last time."""
        entries = self.rig.log.entries[self._stored :]
        self._stored += len(entries)
        self._offset += 1
        with_database = WriterDatabase.connect(self._url, "log")
        with_database.store(
            sources(*entries, offset=self._offset), after=self._offset - 1, through=self._offset
        )
        with_database.close()

    def history(self, columns: str = "*", where: str = "true") -> list[tuple[Any, ...]]:
        """Ask the database, after what there is to store is stored."""
        self.store()
        with psycopg.connect(self._url) as connection:
            text = f"select {columns} from dispatch_history where {where} order by namespace"
            return connection.execute(text.encode()).fetchall()


def uid_of(name: Name) -> str:
    return f"uid-{name[1]}"


@asynccontextmanager
async def tenants(directory: Path, database_url: str) -> AsyncIterator[Tenants]:
    async with Tenants(directory, database_url) as both:
        yield both


def outcome(uid: str, *, begun_ago: int = 60, seconds: int = 60, **changes: Any) -> Any:
    """Return what an honest agent says of a window that began so long ago and is over."""
    start_us = now_us() - begun_ago * SECOND_US
    end_us = start_us + seconds * SECOND_US
    steps = [
        dispatch_pb2.Transition(phase=phase, reason=reason, at_us=at_us)
        for phase, reason, at_us in (
            ("Acked", "Accepted", start_us - 1),
            ("Active", "Applied", start_us),
            ("Complete", "WindowEnded", end_us),
        )
    ]
    facts: dict[str, Any] = {
        "dispatch_uid": uid,
        "observed_generation": 1,
        "phase": "Complete",
        "reason": "WindowEnded",
        "transitions": steps,
        "accepted_us": start_us - 1,
        "planned_start_us": start_us,
        "planned_end_us": end_us,
        "applied_us": start_us,
        "ended_us": end_us,
        "reverted_us": end_us,
        "applied_watts": 5000,
        "active_milliseconds": seconds * 1000,
        "delivered_watt_hours": 5000 * seconds / 3600,
        "within_tolerance_milliseconds": seconds * 1000 - 900,
        "verified": "True",
        "verified_us": start_us + 3,
        "verified_reason": "EffectWithinTolerance",
        "evidence": "Effect",
        "reversion_guard": "AgentTimer",
    }
    return dispatch_pb2.DispatchReport(**facts | changes)
