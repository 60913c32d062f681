"""The link against a real gRPC server with mutual TLS on the loopback."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.agent.fakes import CAPABILITY, T0, FakeClock, FakeDevice, S, asset, inline, order
from tests.agent.gateway import SERVER_NAME, Gateway, Stream, serve
from tests.pki import Authority
from tests.waiting import until

from derops.ids import AssetName
from derops.observability import Readiness
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent.asset.controller import AssetController
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.ledger import Ledger
from derops_agent.execution.site import LocalLimits
from derops_agent.link import link as link_module
from derops_agent.link.link import Endpoint, Link
from derops_agent.link.outlet import StreamOutlet
from derops_agent.link.reasons import EndReason
from derops_agent.ports import BadPoint, Reading, Resolution, Setpoints
from derops_agent.telemetry.outbox_store import OutboxStore
from derops_headend.gateway.agent_stream import AGENT_REASONS

NAME = AssetName("ns", "battery")


class Site:
    """One asset with everything but a sampler, and the gateway that it dials."""

    def __init__(
        self, folder: Path, gateway: Gateway, server_ca: Authority, agent_ca: Authority
    ) -> None:
        self.folder, self.gateway, self.agent_ca = folder, gateway, agent_ca
        self.certificates = folder / "certificates"
        (folder / "ca.crt").write_bytes(server_ca.pem)
        agent_ca.agent("battery").write(self.certificates)
        self.clock, self.readiness = FakeClock(), Readiness()
        device = GuardedDevice(FakeDevice())
        self.ledger = Ledger(folder / "ledger.db")
        self.store = OutboxStore(folder / "outbox.db")
        self.outlet = StreamOutlet(NAME, self.readiness)
        self.outbox = self.store.open(NAME, self.outlet)
        self.controller = AssetController(
            NAME,
            device,
            self.ledger,
            self.clock,
            inline,
            outlet=self.outlet,
            local=LocalLimits(),
            draw=lambda: 0.0,
        )
        self.endpoint = Endpoint(
            gateways=(f"127.0.0.1:{gateway.port}",),
            server_name=SERVER_NAME,
            server_ca_file=folder / "ca.crt",
            certificate_directory=self.certificates,
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.device = device

    async def start(self, **endpoint: Any) -> asyncio.Task[None]:
        link = Link(
            NAME,
            replace(self.endpoint, **endpoint),
            controller=self.controller,
            device=self.device,
            ledger=self.ledger,
            outbox=self.outbox,
            outlet=self.outlet,
            clock=self.clock,
            run_ledger=inline,
            run_outbox=inline,
            instance_id="instance",
            software_version="1",
            readiness=self.readiness,
        )
        if not self.tasks:
            await self.controller.boot()
            self.tasks.append(asyncio.create_task(self.controller.run()))
        task = asyncio.create_task(link.run())
        self.tasks.append(task)
        return task

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.ledger.close()
        self.store.close()


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(link_module, "FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(link_module, "CERTIFICATE_CHECK_SECONDS", 0.05)
    server_ca, agent_ca = Authority("server"), Authority("agent")
    async with serve(server_ca, agent_ca) as gateway:
        site = Site(tmp_path, gateway, server_ca, agent_ca)
        yield site
        await site.stop()


async def test_hello_then_reports_until_settled(site: Site) -> None:
    await site.start()
    first = await site.gateway.next_stream()
    hello = first.received[0].hello
    assert (hello.protocol, hello.ledger_id) == (1, site.ledger.ledger_id)
    assert hello.epoch == site.clock.wall_us // 1000
    assert hello.capability.driver == "fake"
    await first.welcome(now_us=site.clock.wall_us)
    await first.snapshot(asset(), order())
    report = await first.until("report")
    assert (report.phase, report.dispatch_uid) == ("Acked", "d1")
    await first.send(report_ack=agent_pb2.ReportAck(sequence=report.sequence))
    await first.send(bye=agent_pb2.Bye(reason="Rebalance"))

    second = await site.gateway.next_stream()
    assert second.received[0].hello.epoch > hello.epoch
    assert await second.until("report") == report
    await second.welcome()
    await second.send(report_ack=agent_pb2.ReportAck(sequence=report.sequence))
    await second.snapshot(asset(), counter=2)
    ended = await second.until("report", lambda r: r.phase == "Cancelled")
    site.clock.pass_seconds(1)  # after which it is forgotten without another commit
    await second.send(report_ack=agent_pb2.ReportAck(sequence=ended.sequence))
    await second.send(bye=agent_pb2.Bye(reason="Rebalance"))

    third = await site.gateway.next_stream()
    await third.welcome(heartbeat_seconds=1)
    await third.until("heartbeat")
    assert [m.WhichOneof("kind") for m in third.received] == ["hello", "heartbeat"]


async def test_a_partial_snapshot_changes_nothing(site: Site) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(now_us=site.clock.wall_us)
    await stream.snapshot(asset(), order())
    await stream.until("report")
    revision = agent_pb2.Revision(operator_start_ms=1, counter=2)
    await stream.send(sync_begin=agent_pb2.SyncBegin(revision=revision))
    await stream.send(asset=asset(generation=2))
    await stream.send(bye=agent_pb2.Bye(reason="Rebalance"))

    again = await site.gateway.next_stream()
    report = await again.until("report")
    assert report.phase == "Acked"
    await again.send(sync_begin=agent_pb2.SyncBegin(revision=revision))
    await again.send(asset=asset(generation=2))
    await again.send(sync_end=agent_pb2.SyncEnd(revision=revision, count=1))
    assert (await again.until("bye")).reason == "BadSnapshot"
    assert site.controller.revisions.heard.counter == 1
    assert site.controller.journal["d1"].phase == "Acked"


@pytest.mark.parametrize("in_snapshot", [True, False])
async def test_another_assets_configuration_is_refused(site: Site, in_snapshot: bool) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(now_us=site.clock.wall_us)
    other = asset(id=dispatch_pb2.AssetId(uid="asset-1", namespace="ns", name="other"))
    if in_snapshot:
        await stream.snapshot(other, order())
    else:
        await stream.snapshot(asset(), order())
        assert (await stream.until("report")).phase == "Acked"
        await stream.send(asset=other)

    assert (await stream.until("bye")).reason == "WrongAsset"
    stored = site.ledger.asset()
    assert stored is None or stored.id.name == "battery"


async def test_an_older_desired_state_is_refused(site: Site) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome()
    await stream.snapshot(asset(), counter=7)
    await stream.send(bye=agent_pb2.Bye(reason="Rebalance"))
    other = await site.gateway.next_stream()
    assert other.received[0].hello.highest_revision.counter == 7
    await other.welcome()
    await other.snapshot(asset(), counter=6)

    assert (await other.until("bye")).reason == "StaleReplica"
    assert site.controller.revisions.heard.counter == 7


async def test_a_snapshot_older_than_what_could_not_be_stored_yet_is_refused_too(
    site: Site,
) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(now_us=site.clock.wall_us)
    await stream.snapshot(asset(), order("before"), counter=7)
    assert (await stream.until("report")).phase == "Acked"
    site.ledger._db.execute("PRAGMA query_only = 1")  # as a full disk
    revision = agent_pb2.Revision(operator_start_ms=1, counter=9)
    await stream.send(dispatch=order(), revision=revision)
    await stream.send(bye=agent_pb2.Bye(reason="Rebalance"))
    other = await site.gateway.next_stream()
    await other.welcome()
    await other.snapshot(asset(), counter=8)

    assert (await other.until("bye")).reason == "StaleReplica"
    assert site.ledger.revision.counter == 7


async def test_a_snapshot_older_than_what_was_taken_withdraws_nothing(site: Site) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(now_us=site.clock.wall_us)
    await stream.snapshot(asset(), counter=7)
    revision = agent_pb2.Revision(operator_start_ms=1, counter=9)
    await stream.send(dispatch=order(), revision=revision)
    assert (await stream.until("report")).phase == "Acked"
    await stream.send(bye=agent_pb2.Bye(reason="Rebalance"))

    behind = await site.gateway.next_stream()
    assert behind.received[0].hello.highest_revision.counter == 9
    await behind.welcome()
    await behind.snapshot(asset(), counter=8)

    assert (await behind.until("bye")).reason == "StaleReplica"
    assert site.controller.journal["d1"].phase == "Acked"


@pytest.mark.parametrize("where", ["operator_start_ms", "era", "counter"])
async def test_a_desired_state_from_the_future_is_taken_and_not_kept(
    site: Site, where: str
) -> None:
    """Else a gateway with a fast operator, or a hostile one, would be the last that is believed."""
    later = {"operator_start_ms": T0 // 1000 + 10**11, "era": T0 // S + 10**8, "counter": 2**63}
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(now_us=site.clock.wall_us)
    await stream.snapshot(asset(), order("d1"), **{where: later[where]})
    assert (await stream.until("report", lambda report: report.dispatch_uid == "d1")).accepted_us
    revision = agent_pb2.Revision(**{"operator_start_ms": 1, "counter": 2, where: later[where]})
    await stream.send(dispatch=order("d2"), revision=revision)
    await stream.until("report", lambda report: report.dispatch_uid == "d2")
    await stream.send(bye=agent_pb2.Bye(reason="Rebalance"))

    genuine = await site.gateway.next_stream()
    assert genuine.received[0].hello.highest_revision == agent_pb2.Revision()
    await genuine.welcome(now_us=site.clock.wall_us)
    await genuine.snapshot(asset(), order("d1"), order("d2"), operator_start_ms=T0 // 1000)
    await until(lambda: site.ledger.revision.operator_start_ms == T0 // 1000)


async def test_an_agent_whose_clock_is_fifty_years_slow_works(site: Site) -> None:
    site.clock.wall_us -= 50 * 365 * 86400 * S
    await site.start()
    for start_ms in (T0 // 1000, T0 // 1000 + 5):
        stream = await site.gateway.next_stream()
        await stream.welcome(now_us=site.clock.wall_us)
        await stream.snapshot(asset(), operator_start_ms=start_ms)
        taken = agent_pb2.Revision(operator_start_ms=start_ms, counter=1)
        await until(partial(lambda taken: site.controller.revisions.handled == taken, taken))
        await stream.send(bye=agent_pb2.Bye(reason="Rebalance"))

    assert site.ledger.revision == agent_pb2.Revision()


async def test_an_agent_that_kept_a_start_from_the_future_takes_a_higher_era(site: Site) -> None:
    poison = agent_pb2.Revision(operator_start_ms=T0 // 1000 + 10**11, counter=7)
    site.ledger.save([], alive=site.ledger.alive, revision=poison)
    site.controller.revisions.heard = poison
    await site.start()
    stale = await site.gateway.next_stream()
    await stale.welcome()
    await stale.snapshot(asset(), operator_start_ms=T0 // 1000)
    assert (await stale.until("bye")).reason == "StaleReplica"

    healed = await site.gateway.next_stream()
    await healed.welcome()
    await healed.snapshot(asset(), operator_start_ms=T0 // 1000, era=T0 // S)

    await until(lambda: site.ledger.revision.era == T0 // S)
    assert site.ledger.revision.operator_start_ms == T0 // 1000


async def test_telemetry_runs_on_credit_and_goes_when_acknowledged(site: Site) -> None:
    for number in range(5):
        site.outbox.add(Reading(at_us=number, values={int(agent_pb2.ACTIVE_POWER_WATTS): 1.0}))
        site.store.flush()
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(heartbeat_seconds=1)
    await stream.until("heartbeat")
    assert not any(m.HasField("telemetry") for m in stream.received)
    await stream.send(credit=agent_pb2.TelemetryCredit(acknowledged_through=1, send_through=3))
    await stream.until("telemetry", lambda batch: batch.sequence == 3)
    await stream.send(credit=agent_pb2.TelemetryCredit(acknowledged_through=3, send_through=9))
    await stream.until("telemetry", lambda batch: batch.sequence == 5)

    sent = [m.telemetry.sequence for m in stream.received if m.HasField("telemetry")]
    assert sent == [2, 3, 4, 5]
    site.store.flush()
    assert [sequence for sequence, _ in site.outbox.read(0, 99)] == [4, 5]


async def test_a_gap_beyond_the_credit_is_sent_all_the_same(site: Site) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome()
    await stream.send(credit=agent_pb2.TelemetryCredit(send_through=2))
    for number in range(100):
        site.outbox.add(Reading(at_us=number, values={int(agent_pb2.ACTIVE_POWER_WATTS): 1.0}))
        site.store.flush()
    await stream.until("telemetry", lambda batch: batch.sequence == 2)
    site.store._max_bytes = 2000
    site.store.flush()
    gap = await stream.until("gap")

    assert gap.sequence > 60
    assert not any(m.HasField("telemetry") and m.telemetry.sequence > 2 for m in stream.received)


async def test_hello_says_where_the_outbox_begins(site: Site) -> None:
    for number in range(5):
        site.outbox.add(Reading(at_us=number, values={int(agent_pb2.ACTIVE_POWER_WATTS): 1.0}))
        site.store.flush()
    await site.start()
    stream = await site.gateway.next_stream()
    assert (await stream.until("hello")).first_sequence == 1
    await stream.welcome()
    await stream.send(credit=agent_pb2.TelemetryCredit(acknowledged_through=3, send_through=3))
    await stream.send(bye=agent_pb2.Bye(reason="Test"))

    again = await site.gateway.next_stream()

    assert (await again.until("hello")).first_sequence == 4


async def test_no_telemetry_is_acknowledged_between_the_hellos_of_a_renewal(site: Site) -> None:
    for number in range(2):
        site.outbox.add(Reading(at_us=number, values={int(agent_pb2.ACTIVE_POWER_WATTS): 1.0}))
        site.store.flush()
    await site.start()
    old = await site.gateway.next_stream()
    await old.welcome(heartbeat_seconds=1)
    await old.snapshot(asset())
    site.agent_ca.agent("battery").write(site.certificates)
    new = await site.gateway.next_stream()
    await old.send(credit=agent_pb2.TelemetryCredit(acknowledged_through=0, send_through=2))
    await old.until("heartbeat")

    assert not any(message.HasField("telemetry") for message in old.received)
    assert (await new.until("hello")).first_sequence == 1
    await new.welcome()
    await new.snapshot(asset(), counter=2)
    await new.send(credit=agent_pb2.TelemetryCredit(send_through=2))
    await new.until("telemetry", lambda batch: batch.sequence == 2)


async def test_a_refused_epoch_is_exceeded(site: Site) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    highest = site.clock.wall_us // 1000 + 10**6
    await stream.send(
        bye=agent_pb2.Bye(reason="EpochTooLow", message=f"highest known epoch is {highest}")
    )

    again = await site.gateway.next_stream()
    assert again.received[0].hello.epoch == highest + 1


async def test_a_gateway_of_another_name_is_not_trusted(site: Site) -> None:
    await site.start(server_name="somebody-else")

    with pytest.raises(TimeoutError):
        await site.gateway.next_stream(seconds=1)


async def test_a_new_certificate_gets_a_stream_before_the_old_one_ends(site: Site) -> None:
    await site.start()
    old = await site.gateway.next_stream()
    await old.welcome()
    await old.snapshot(asset())
    site.agent_ca.agent("battery").write(site.certificates)
    new = await site.gateway.next_stream()
    assert not old.ended.is_set()
    await new.welcome()
    await new.snapshot(asset())

    assert (await old.until("bye")).reason == "CertificateRenewed"
    identities = [s.context.auth_context()["x509_pem_cert"] for s in (old, new)]
    assert identities[0] != identities[1]


async def test_a_changed_server_ca_gets_a_stream_before_the_old_one_ends(site: Site) -> None:
    await site.start()
    old = await site.gateway.next_stream()
    await old.welcome()
    await old.snapshot(asset())

    file = site.folder / "ca.crt"
    file.write_bytes(file.read_bytes() + Authority("server-2").pem)
    new = await site.gateway.next_stream()
    await new.welcome()
    await new.snapshot(asset())

    assert (await old.until("bye")).reason == "CertificateRenewed"


@pytest.mark.parametrize("wrong", ["ca.crt", "tls.key", "tls.crt"])
async def test_files_that_do_not_fit_disturb_no_stream(site: Site, wrong: str) -> None:
    await site.start()
    old = await site.gateway.next_stream()
    await old.welcome(heartbeat_seconds=1)
    await old.snapshot(asset())

    folder = site.folder if wrong == "ca.crt" else site.certificates
    content = (folder / wrong).read_bytes()
    (folder / wrong).write_bytes(b"garbage")

    await until(lambda: "degraded certificate of ns/battery" in site.readiness.report()[1])
    assert not old.ended.is_set()
    (folder / wrong).write_bytes(content)
    await old.until("heartbeat")
    assert site.gateway.streams.empty()


async def test_when_a_certificate_is_over_is_told(site: Site) -> None:
    site.clock.wall_us = int(datetime.now(UTC).timestamp() * 1_000_000)
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome()
    name = "derops_agent_certificate_expiry_timestamp_seconds"
    ends = REGISTRY.get_sample_value(name)
    assert ends is not None
    assert 3500 < ends - datetime.now(UTC).timestamp() < 3600
    assert "certificate's end" not in site.readiness.report()[1]

    site.clock.wall_us += 2 * 3600 * 1_000_000

    await until(lambda: "certificate's end of ns/battery: over since" in site.readiness.report()[1])
    assert site.readiness.report()[0]


def test_gateways_count_each_reason_for_which_an_agent_ends_its_stream() -> None:
    assert set(EndReason) == AGENT_REASONS


async def test_missing_certificates_are_waited_for(site: Site) -> None:
    (site.certificates / "tls.crt").rename(site.folder / "kept")
    await site.start()
    while site.readiness.report()[0]:
        await asyncio.sleep(0)
    assert "certificate of ns/battery" in site.readiness.report()[1]
    (site.folder / "kept").rename(site.certificates / "tls.crt")

    await site.gateway.next_stream()
    assert site.readiness.report()[0]


async def test_a_withdrawal_gets_through_to_an_agent_whose_ledger_takes_nothing(
    site: Site,
) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(now_us=site.clock.wall_us)
    await stream.snapshot(asset(), order(start_us=site.clock.wall_us))
    await stream.until("report", lambda r: r.phase == "Active")
    site.ledger._db.execute("PRAGMA query_only = 1")
    await stream.send(bye=agent_pb2.Bye(reason="Drain"))
    again = await site.gateway.next_stream()
    assert again.received[0].hello.epoch > stream.received[0].hello.epoch
    await again.welcome(now_us=site.clock.wall_us)
    await again.snapshot(asset(), counter=2)
    while (await site.device.read_setpoints()) != Setpoints(active_power_watts=0):
        await asyncio.sleep(0)
    site.ledger._db.execute("PRAGMA query_only = 0")

    await again.until("report", lambda r: r.reason == "CancelledWhileActive")


async def test_the_end_of_the_process_is_said(site: Site) -> None:
    task = await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome()
    await stream.snapshot(asset())
    task.cancel()

    assert (await stream.until("bye")).reason == "Shutdown"


async def test_a_heartbeat_says_where_the_telemetry_stands(site: Site) -> None:
    taken_us = site.clock.wall_us - 3 * S
    site.outbox.add(Reading(at_us=taken_us, values={1: 5.0}))
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(heartbeat_seconds=1)

    beat = await stream.until("heartbeat")

    assert beat.telemetry == agent_pb2.TelemetryFacts(
        sampled_us=taken_us, waiting_samples=1, oldest_waiting_us=taken_us
    )


async def test_the_clock_offset_is_the_median_of_the_heartbeats(site: Site) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(heartbeat_seconds=1)
    beat = await stream.until("heartbeat")
    now_us = site.clock.wall_us
    assert beat.agent_sent_us == now_us
    for offset in (9 * S, 7 * S, 8 * S):
        await stream.send(
            heartbeat_reply=agent_pb2.HeartbeatReply(
                agent_sent_us=now_us,
                gateway_received_us=now_us + offset,
                gateway_sent_us=now_us + offset,
            )
        )
    await stream.snapshot(asset(), order())
    report = await stream.until("report")

    assert (report.phase, report.reason) == ("Rejected", "ClockSkewTooLarge")
    assert report.clock_offset_milliseconds == 8000


async def test_a_clock_that_was_set_is_off_from_the_next_heartbeat_on(site: Site) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(heartbeat_seconds=1)
    gateway_us = (await stream.until("heartbeat")).agent_sent_us

    def reply() -> agent_pb2.HeartbeatReply:
        return agent_pb2.HeartbeatReply(
            agent_sent_us=site.clock.wall_us,
            gateway_received_us=gateway_us,
            gateway_sent_us=gateway_us,
        )

    for _ in range(3):
        await stream.send(heartbeat_reply=reply())
    await stream.snapshot(asset())  # it is handled after the replies
    await until(lambda: site.controller.revisions.heard.counter == 1)
    site.clock.wall_us += 3600 * S
    await stream.send(heartbeat_reply=reply())
    await stream.snapshot(asset(), order(), counter=2)
    report = await stream.until("report")

    assert (report.phase, report.reason) == ("Rejected", "ClockSkewTooLarge")
    assert report.clock_offset_milliseconds == -3_600_000


async def test_after_failsafe_a_stream_that_lives_on_is_left_for_a_new_snapshot(site: Site) -> None:
    config = asset(on_comms_loss="Revert", failsafe_after_seconds=3600)
    await site.start()
    slow = await site.gateway.next_stream()
    await slow.welcome(now_us=site.clock.wall_us)
    await slow.snapshot(config, order())
    await slow.until("report", lambda r: r.phase == "Acked")
    site.clock.mono_us += 3601 * S
    site.controller.take(Reading(at_us=site.clock.wall_us, values={}))  # it looks at the clock

    assert (await slow.until("bye")).reason == "Failsafe"
    fresh = await site.gateway.next_stream()
    await fresh.welcome(now_us=site.clock.wall_us)
    site.clock.pass_seconds(60)
    await fresh.snapshot(config, order(), counter=2)
    await fresh.until("report", lambda r: r.phase == "Active")


async def test_a_quiet_gateway_is_asked_more_often_than_the_asset_calls_silence(site: Site) -> None:
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(heartbeat_seconds=3600)
    await stream.until("heartbeat")
    await stream.snapshot(asset(on_comms_loss="Revert", failsafe_after_seconds=1))

    await stream.until("heartbeat", lambda _: _count(stream, "heartbeat") == 3)


def _count(stream: Stream, kind: str) -> int:
    return sum(message.WhichOneof("kind") == kind for message in stream.received)


async def test_a_heartbeat_says_what_is_wrong_with_the_device(site: Site) -> None:
    resolutions = {"ActivePower": Resolution(step_watts=1000)}
    capability = replace(CAPABILITY, resolutions=resolutions)
    site.device._device = FakeDevice(capability=capability)
    await site.start()
    stream = await site.gateway.next_stream()
    await stream.welcome(heartbeat_seconds=1)
    first = await stream.until("heartbeat")
    assert not first.HasField("device"), "it does not know its asset, nor has it asked its device"

    await stream.snapshot(asset(fallback_active_power_watts=500))
    point = BadPoint(name="stateOfChargePercent", raw="0x0065", problem="101 % is no share")
    reading = Reading(at_us=site.clock.wall_us, values={}, bad_points=(point,))
    site.controller.take(reading)

    def tells_all(heartbeat: agent_pb2.Heartbeat) -> bool:
        return bool(heartbeat.device.bad_points and heartbeat.device.fallback_problem)

    told = (await stream.until("heartbeat", tells_all)).device
    assert [(each.name, each.raw) for each in told.bad_points] == [(point.name, point.raw)]
    assert "500 W" in told.fallback_problem
    assert told.silent_since_us == 0
