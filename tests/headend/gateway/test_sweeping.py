"""Looking at every stream once a second, while others wait for their turn."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from tests.headend.gateway.rig import FakeLog

from derops.ids import AssetName
from derops.wire.v1 import agent_pb2, control_pb2
from derops_headend.access.certificates import AgentCertificate
from derops_headend.fleet.sessions import Session
from derops_headend.gateway.admission_control import AdmissionControl
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.gateway.exchange import Exchange
from derops_headend.gateway.log_appender import LogAppender

STREAMS = 1000


@dataclass
class Outlet:
    """A stream of which it is known how often it was looked at, and when it was ended."""

    certificate: AgentCertificate
    session: Session
    peer: str = "ipv4:127.0.0.1:1"
    ledger_id: str = "ledger"
    looks: int = 0
    ended: list[str] = field(default_factory=list)
    is_alive: bool = True
    device: control_pb2.DeviceState | None = None

    def send(self, message: agent_pb2.GatewayMessage) -> None: ...
    def offer(self, dispatch_uid: str) -> None: ...

    def end(self, reason: str, message: str) -> None:
        self.ended.append(reason)

    def end_if_silent(self) -> None:
        self.looks += 1


def _outlet(number: int, not_after_us: int) -> Outlet:
    certificate = AgentCertificate(
        asset=AssetName("ns", f"a{number}"),
        serial_number="1",
        public_key_sha256="2",
        not_after_us=not_after_us,
    )
    session = Session(
        asset_uid=f"uid-{number}",
        epoch=1,
        instance_id="i",
        serial_number="1",
        opened_us=1,
        since_us=1,
        capability=agent_pb2.Capability(),
    )
    return Outlet(certificate, session)


async def test_every_stream_is_looked_at_and_others_have_their_turn_meanwhile(
    tmp_path: Path,
) -> None:
    store = DesiredStore(tmp_path / "desired.db", 1)
    exchange = Exchange(
        replica="gateway-0",
        store=store,
        journal=LogAppender(FakeLog(), "gateway-0", lambda: 10),
        admission=AdmissionControl(lambda: 0.0),
        now_us=lambda: 10,
    )
    outlets = [_outlet(number, 5 if number % 2 else 20) for number in range(STREAMS)]
    for outlet in outlets:
        exchange.open(outlet)
    looked_at_by_then = list[int]()

    async def other() -> None:
        looked_at_by_then.append(sum(outlet.looks for outlet in outlets))

    waiting = asyncio.create_task(other())
    await exchange.end_overdue()
    await waiting

    assert looked_at_by_then[0] < STREAMS
    assert [outlet.looks for outlet in outlets] == [1] * STREAMS
    expired = [outlet.ended == ["CertificateExpired"] for outlet in outlets]
    assert expired == [bool(number % 2) for number in range(STREAMS)]
    store.close()
