"""The operator's end of Control.Sync and the gateway's: real mTLS, and clocks that are set."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.headend.gateway.rig import Rig, now_ms
from tests.operator.making import asset, at
from tests.pki import TRUST_DOMAIN, Leaf
from tests.waiting import until

from derops.observability import Readiness
from derops.wire.v1 import control_pb2, log_pb2
from derops_headend.fleet.desired import Revision
from derops_operator.gateways import wire
from derops_operator.gateways.desired import Desired
from derops_operator.gateways.replicas import Fleet
from derops_operator.gateways.sync import GatewaySync
from derops_operator.settings import OperatorSettings

HOUR_MS = 3_600_000


class Losses(Fleet):
    """A fleet that counts how often a replica was lost."""

    losses = 0

    def lose_replica(self, name: str, now_us: int) -> None:
        self.losses += 1
        super().lose_replica(name, now_us)


class Meeting:
    """A gateway, and an operator that dials it."""

    def __init__(self, rig: Rig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig, self.folder, self.ahead_ms = rig, folder, 0
        monkeypatch.setattr("derops_operator.gateways.sync._now_us", lambda: self.now_ms() * 1000)
        monkeypatch.setattr("derops_operator.gateways.sync.IDENTITY_SECONDS", 0.05)
        monkeypatch.setattr("derops_operator.gateways.sync._BACKOFF_SECONDS", (0.05, 0.1))
        self.readiness, self.fleet = Readiness(), Losses(at(0))
        self.mount(rig.operator_leaf)
        self._running: asyncio.Task[None] | None = None

    def now_ms(self) -> int:
        """Return what the operator's clock says."""
        return now_ms() + self.ahead_ms

    def mount(self, leaf: Leaf) -> None:
        """Show the operator a certificate with its key."""
        (self.folder / "ca.crt").write_bytes(self.rig.control_ca.pem)
        (self.folder / "tls.key").write_bytes(leaf.key)
        (self.folder / "tls.crt").write_bytes(leaf.pem)

    def start(self, era: int = 0) -> None:
        """Start the operator."""
        assert self.rig.gateway is not None
        self.desired = Desired(self.now_ms(), era)
        self.desired.put_asset(wire.asset_message(asset(), {}))
        settings = OperatorSettings(
            gateways=(f"127.0.0.1:{self.rig.gateway.control_port}",),
            control_tls_directory=self.folder,
            server_ca_file=self.folder / "ca.crt",
            trust_domain=TRUST_DOMAIN,
            era=era,
        )
        self.sync = GatewaySync(
            settings,
            self.desired,
            self.fleet,
            self.readiness,
            lambda _: None,
            lambda: None,
            lambda _: None,
        )
        self._running = asyncio.create_task(self.sync.run())

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    @property
    def served(self) -> Revision | None:
        """What the gateway serves."""
        assert self.rig.gateway is not None
        return self.rig.gateway.exchange.desired.revision

    @property
    def history(self) -> list[str]:
        """Which dispatches the gateway put into the log, in order."""
        entries = self.rig.log.of(log_pb2.HEADEND_TRANSITION)
        bodies = [control_pb2.HeadendTransition.FromString(entry.body) for entry in entries]
        return [body.dispatch_uid for body in bodies]

    @property
    def ready(self) -> bool:
        return self.readiness.report()[0]

    @property
    def told(self) -> str:
        """What the operator's /readyz says."""
        return self.readiness.report()[1]


def transition(uid: str) -> control_pb2.HeadendTransition:
    return control_pb2.HeadendTransition(dispatch_uid=uid)


@pytest.fixture
async def meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Meeting]:
    rig = Rig(tmp_path)
    await rig.start()
    (folder := tmp_path / "mount").mkdir()
    meeting = Meeting(rig, folder, monkeypatch)
    yield meeting
    await meeting.stop()
    await rig.stop()


@pytest.mark.parametrize("first", ["operator", "gateway"])
async def test_a_renewed_key_is_taken_up_without_a_gap(meeting: Meeting, first: str) -> None:
    meeting.start()
    await until(lambda: meeting.ready)
    renewed = meeting.rig.make_operator()

    if first == "operator":  # the gateway's mount lags: the old stream stays
        meeting.mount(renewed)
        await until(lambda: "degraded operator key" in meeting.told)
        assert meeting.ready
        meeting.desired.remove_asset("uid-battery")
        await until(lambda: meeting.fleet.accepted_version() == meeting.desired.version)
        meeting.rig.operator_file.write_bytes(renewed.pem)
    else:
        meeting.rig.operator_file.write_bytes(renewed.pem)
        meeting.mount(renewed)
    streams = meeting.rig.gateway._control._streams  # type: ignore[union-attr]
    keys = {renewed.known.public_key_sha256}
    await until(lambda: {each.certificate.public_key_sha256 for each in streams} == keys)
    meeting.desired.put_asset(wire.asset_message(asset(generation=2), {}))
    await until(lambda: meeting.fleet.accepted_version() == meeting.desired.version)

    assert meeting.fleet.losses == 0
    assert meeting.told == "ok"


async def test_a_fast_clock_is_told_on_both_sides_and_heals_by_itself(meeting: Meeting) -> None:
    meeting.ahead_ms = HOUR_MS
    meeting.start()
    gateway = meeting.rig.readiness
    await until(lambda: "degraded operator clock" in meeting.told)
    assert "3600 s ahead of the gateway's" in meeting.told
    for told in (meeting.told, gateway.report()[1]):
        assert "OperatorClockAhead" in told
    assert "degraded operator clock: 3600 s ahead" in gateway.report()[1]
    assert meeting.served is None
    meeting.sync.record(transition("d1"))

    meeting.ahead_ms = 0
    await until(lambda: meeting.ready)

    assert meeting.told == "ok"
    assert "operator clock" not in gateway.report()[1]
    assert meeting.served is not None
    assert abs(meeting.served.operator_start_ms - now_ms()) < 60_000
    await until(lambda: meeting.history == ["d1"])


async def test_a_predecessor_with_a_fast_clock_is_waited_for(meeting: Meeting) -> None:
    told_ms = now_ms() + 3000
    await meeting.rig.operator().snapshot([], start_ms=told_ms)

    meeting.start()
    await until(lambda: "degraded operator start" in meeting.told)
    assert "goes on when that is over" in meeting.told
    await until(lambda: meeting.ready)

    assert meeting.served is not None
    assert meeting.served.operator_start_ms > told_ms
    assert meeting.told == "ok"


async def test_who_was_superseded_stays_so(meeting: Meeting) -> None:
    meeting.start()
    await until(lambda: meeting.ready)
    successor_ms = meeting.desired.operator_start_ms + 1

    successor = meeting.rig.operator()
    await successor.snapshot([], start_ms=successor_ms)
    await until(lambda: "an operator that began later has taken over" in meeting.told)
    version = await successor.say(dispatch=meeting.rig.dispatch("d1"))
    await successor.accepted(version)

    assert meeting.served == Revision(operator_start_ms=successor_ms, version=version)
    assert not meeting.ready


async def test_a_higher_era_wins_over_a_start_that_is_years_ahead(meeting: Meeting) -> None:
    gateway = meeting.rig.gateway
    assert gateway is not None
    poison = Revision(operator_start_ms=now_ms() + 10**11, version=9)
    gateway.exchange.desired.revision = poison
    meeting.start()
    await until(lambda: "begin a new era" in meeting.told)
    await meeting.stop()

    era = now_ms() // 1000
    meeting.start(era=era)
    await until(lambda: meeting.ready)
    assert meeting.served is not None
    assert meeting.served.era == era

    await meeting.stop()
    meeting.start()  # the era is not to be taken away again
    await until(lambda: "set DEROPS_OPERATOR_ERA to it" in meeting.told)
    assert f"era {era} was begun" in meeting.told
