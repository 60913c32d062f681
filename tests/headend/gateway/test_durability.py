"""Nothing is acknowledged before the log has it."""

import asyncio
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from tests.headend.gateway.rig import Agent, Operator, Rig, now_us
from tests.pki import Leaf

from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2, log_pb2
from derops_headend.fleet.shares import OVERHEAD_BYTES
from derops_headend.gateway.intake import MAX_REFUSED_BATCHES
from derops_headend.gateway.stream_reports import MAX_REFUSED_REPORTS


@pytest.fixture
async def agent(rig: Rig, leaf: Leaf, operator: Operator) -> Agent:
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))
    agent = rig.agent(leaf)
    await agent.connect()
    await rig.log.connection("Connected")
    return agent


async def echo(agent: Agent) -> list[agent_pb2.GatewayMessage]:
    """Return what the gateway said before it answered a heartbeat, to prove what it did not say."""
    await agent.send(agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=1)))
    messages = []
    while (message := await agent.read()).WhichOneof("kind") != "heartbeat_reply":
        messages.append(message)
    return messages


async def answers_of(agent: Agent, count: int) -> list[agent_pb2.GatewayMessage]:
    return [await agent.read() for _ in range(count)]


async def test_a_report_is_told_at_once_and_acknowledged_once_it_is_durable(
    rig: Rig, agent: Agent, operator: Operator
) -> None:
    rig.log.open.clear()
    rig.log.asked.clear()
    await agent.report("d1", sequence=3)
    await rig.log.asked.wait()
    told = await operator.read_until("report")
    assert await echo(agent) == []

    rig.log.open.set()

    assert (await agent.read_until("report_ack")).sequence == 3
    assert (told.asset_uid, told.report.dispatch_uid) == ("uid-battery", "d1")
    (entry,) = rig.log.of(log_pb2.AGENT_REPORT)
    assert dispatch_pb2.DispatchReport.FromString(entry.body) == told.report
    assert entry.asset == rig.asset("battery").id


async def test_an_agent_may_forget_a_dispatch_only_when_its_reports_are_durable(
    rig: Rig, agent: Agent, operator: Operator
) -> None:
    rig.log.open.clear()
    rig.log.asked.clear()
    await agent.report("d1", "Rejected", sequence=1)
    await agent.report("d1", "Rejected", sequence=2)
    await rig.log.asked.wait()
    await operator.read_until("report")
    await operator.accepted(await operator.say(dispatch_removed="d1"))
    assert await echo(agent) == []

    rig.log.open.set()

    kinds = [message.WhichOneof("kind") for message in await answers_of(agent, 3)]
    assert sorted(kinds) == ["report_ack", "report_ack", "settled"]
    assert kinds[-1] == "settled"


async def test_a_log_that_fails_acknowledges_nothing_until_it_is_well_again(
    rig: Rig, agent: Agent, operator: Operator
) -> None:
    rig.log.failure = OSError("disk full")
    rig.log.asked.clear()
    await agent.report("d1")
    await agent.telemetry(1)
    await rig.log.asked.wait()
    rig.log.asked.clear()
    await rig.log.asked.wait()  # it was tried again
    assert await echo(agent) == []
    assert rig.readiness.report() == (True, "degraded event log: OSError: disk full")

    await operator.accepted(await operator.say(dispatch=rig.dispatch("d2")))
    assert (await agent.read_until("dispatch")).uid == "d2"
    rig.log.failure = None

    answers = {message.WhichOneof("kind"): message for message in await answers_of(agent, 2)}
    assert answers["report_ack"].report_ack.sequence == 1
    assert answers["credit"].credit.acknowledged_through == 1
    assert rig.readiness.report() == (True, "ok")
    assert [entry.kind for entry in rig.log.entries[-2:]] == [
        log_pb2.AGENT_REPORT,
        log_pb2.TELEMETRY,
    ]


async def test_a_gateway_that_stops_while_its_log_fails_says_so(rig: Rig, agent: Agent) -> None:
    rig.log.failure = OSError("disk full")
    rig.log.asked.clear()
    await agent.report("d1")
    await rig.log.asked.wait()

    stopping = asyncio.create_task(rig.stop())

    await stopping
    assert rig.log.of(log_pb2.AGENT_REPORT) == []


async def test_the_latest_report_is_told_again_after_a_snapshot_until_it_is_settled(
    rig: Rig, leaf: Leaf, agent: Agent, operator: Operator
) -> None:
    for sequence, phase in ((1, "Acked"), (2, "Active"), (1, "Acked")):
        await agent.report("d1", phase, sequence)
        await agent.read_until("report_ack")
    await operator.snapshot([rig.asset("battery", leaf)], [rig.dispatch("d1")])
    assert (await operator.read_until("report")).report.phase == "Active"

    await operator.say(dispatch_removed="d1")

    assert (await agent.read_until("settled")).dispatch_uid == "d1"
    await operator.snapshot([rig.asset("battery", leaf)])
    version = await operator.say(epoch_seen=control_pb2.EpochSeen(asset_uid="uid-battery", epoch=1))
    while (message := await operator.read()).accepted_version < version:
        assert message.WhichOneof("kind") != "report"


async def test_a_report_is_told_again_with_a_change_of_its_dispatch(
    rig: Rig, agent: Agent, operator: Operator
) -> None:
    # The operator leaves out what it knows no Dispatch for; it may come to know it.
    await operator.say(dispatch=rig.dispatch("d1"))
    await agent.report("d1")
    first = await operator.read_until("report")

    await operator.say(dispatch=rig.dispatch("d1", generation=2))

    assert await operator.read_until("report") == first
    assert (first.namespace, first.asset_name) == ("pilot", "battery")


async def test_a_late_report_is_logged_told_and_settled(
    rig: Rig, agent: Agent, operator: Operator
) -> None:
    await agent.report("forgotten", "Complete", 9)

    assert (await agent.read_until("report_ack")).sequence == 9
    assert (await agent.read_until("settled")).dispatch_uid == "forgotten"
    assert (await operator.read_until("report")).report.dispatch_uid == "forgotten"
    assert len(rig.log.of(log_pb2.AGENT_REPORT)) == 1


async def test_a_report_on_anothers_dispatch_is_refused(
    rig: Rig, agent: Agent, operator: Operator
) -> None:
    await operator.say(asset=rig.asset("other"))
    await operator.accepted(await operator.say(dispatch=rig.dispatch("theirs", asset="other")))

    await agent.report("theirs", "Complete")

    assert await echo(agent) == []
    assert rig.log.of(log_pb2.AGENT_REPORT) == []


async def recreate(rig: Rig, leaf: Leaf, operator: Operator, **dispatch: Any) -> Agent:
    """Create the battery anew after a dispatch of the earlier one went to its agent."""
    old = rig.dispatch("d1", namespace="pilot", **dispatch)
    await operator.accepted(await operator.say(dispatch=old))
    first = rig.agent(leaf)
    await first.connect()
    await first.close()
    await operator.say(asset=rig.asset("battery", leaf, uid="uid-anew"))
    await operator.accepted(await operator.say(asset_removed="uid-battery"))
    return rig.agent(leaf)


async def test_the_ledger_that_had_a_dispatch_answers_for_the_asset_before_its_recreation(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = await recreate(rig, leaf, operator, asset_name="battery")
    await agent.connect(epoch=2)

    await agent.report("d1", "Cancelled")

    assert (await agent.read_until("report_ack")).sequence == 1
    told = await operator.read_until("report")
    assert (told.asset_uid, told.report.phase) == ("uid-battery", "Cancelled")
    assert [each.asset.uid for each in rig.log.of(log_pb2.AGENT_REPORT)] == ["uid-battery"]


@pytest.mark.parametrize(
    ("asset_name", "ledger_id"), [("battery", "ledger-2"), ("other", "ledger-1"), ("", "ledger-1")]
)
async def test_no_other_ledger_or_name_answers_for_an_earlier_asset(
    rig: Rig, leaf: Leaf, operator: Operator, asset_name: str, ledger_id: str
) -> None:
    agent = await recreate(rig, leaf, operator, asset_name=asset_name)
    agent.ledger_id = ledger_id
    await agent.connect(epoch=2)

    await agent.report("d1", "Cancelled")

    assert await echo(agent) == []
    assert rig.log.of(log_pb2.AGENT_REPORT) == []


async def test_a_report_that_breaks_a_rule_is_refused_alone(rig: Rig, agent: Agent) -> None:
    await agent.report("d1", "Exploded", sequence=1)
    await agent.report("d1", "Acked", sequence=2)

    assert (await agent.read_until("report_ack")).sequence == 2
    (entry,) = rig.log.of(log_pb2.AGENT_REPORT)
    assert dispatch_pb2.DispatchReport.FromString(entry.body).phase == "Acked"


async def test_an_agent_whose_reports_keep_breaking_rules_is_ended(agent: Agent) -> None:
    for sequence in range(MAX_REFUSED_REPORTS + 1):
        await agent.report("d1", "Exploded", sequence + 1)

    assert (await agent.read_until("bye")).reason == "BadReport"


async def test_transitions_of_the_headend_are_accepted_once_they_are_durable(
    rig: Rig, operator: Operator
) -> None:
    rig.log.open.clear()
    transition = control_pb2.HeadendTransition(
        asset=rig.asset("battery").id,
        dispatch_uid="d1",
        transition=dispatch_pb2.Transition(phase="Submitted", reason="Validated"),
    )
    version = await operator.say(transition=transition)
    await rig.log.asked.wait()
    assert rig.log.entries == []

    rig.log.open.set()
    await operator.accepted(version)

    (entry,) = rig.log.of(log_pb2.HEADEND_TRANSITION)
    assert control_pb2.HeadendTransition.FromString(entry.body) == transition


async def test_telemetry_is_acknowledged_once_it_is_durable(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    agent.first_sequence = 101
    credit = (await agent.connect())[-1].credit
    assert (credit.acknowledged_through, credit.send_through) == (100, 116)
    await rig.log.connection("Connected")
    rig.log.open.clear()
    rig.log.asked.clear()
    await agent.telemetry(101)
    await rig.log.asked.wait()
    assert await echo(agent) == []

    await agent.telemetry(102)
    rig.log.open.set()
    while (credit := await agent.read_until("credit")).acknowledged_through < 102:
        pass

    assert credit.send_through == 102 + 16
    bodies = [entry.body for entry in rig.log.of(log_pb2.TELEMETRY)]
    assert [agent_pb2.TelemetryBatch.FromString(body).sequence for body in bodies] == [101, 102]


async def test_telemetry_beyond_the_credit_is_not_acknowledged(rig: Rig, agent: Agent) -> None:
    rig.log.open.clear()
    for sequence in range(1, 41):
        await agent.telemetry(sequence)
    await echo(agent)

    rig.log.open.set()
    acknowledged = 0
    while acknowledged < 16:
        acknowledged = (await agent.read_until("credit")).acknowledged_through

    assert await echo(agent) == []
    assert len(rig.log.of(log_pb2.TELEMETRY)) == 16
    await agent.telemetry(18)
    assert (await agent.read_until("bye")).reason == "TelemetryOutOfOrder"


async def test_what_becomes_durable_together_is_acknowledged_once(rig: Rig, agent: Agent) -> None:
    rig.log.open.clear()
    rig.log.asked.clear()
    await agent.telemetry(1)
    await rig.log.asked.wait()
    for sequence in range(2, 12):
        await agent.telemetry(sequence)
    await echo(agent)
    rig.log.open.set()

    seen = [(await agent.read_until("credit")).acknowledged_through]
    while seen[-1] < 11:
        seen.append((await agent.read_until("credit")).acknowledged_through)

    assert seen in ([11], [1, 11])


@pytest.mark.parametrize(("taken", "window"), [(0.5, 16), (0.875, 8), (0.94, 1), (0.95, 0)])
async def test_credit_shrinks_as_the_log_fills(
    rig: Rig, leaf: Leaf, operator: Operator, taken: float, window: int
) -> None:
    rig.log.taken = taken
    agent = rig.agent(leaf)

    assert (await agent.connect())[-1].credit.send_through == window


async def test_telemetry_gets_credit_again_when_the_log_has_room(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    rig.log.taken = 0.97
    agent = rig.agent(leaf)
    assert (await agent.connect())[-1].credit.send_through == 0
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))
    await agent.read_until("dispatch")
    await agent.report("d1")
    assert (await agent.read_until("report_ack")).sequence == 1

    rig.log.taken = 0.5

    assert (await agent.read_until("credit")).send_through == 16


async def test_a_promise_is_kept_when_the_log_fills(rig: Rig, agent: Agent) -> None:
    rig.log.taken = 0.97

    for sequence in range(1, 17):
        await agent.telemetry(sequence)
    while (credit := await agent.read_until("credit")).acknowledged_through < 16:
        pass

    assert credit.send_through == 16


async def test_a_resent_batch_is_stored_once(rig: Rig, agent: Agent) -> None:
    for sequence in (1, 2, 1, 2, 3):
        await agent.telemetry(sequence)
    while (await agent.read_until("credit")).acknowledged_through < 3:
        pass

    assert len(rig.log.of(log_pb2.TELEMETRY)) == 3


async def test_a_gap_takes_the_place_of_what_was_dropped(rig: Rig, agent: Agent) -> None:
    await agent.telemetry(1)
    gap = agent_pb2.Gap(
        sequence=5000, outbox_id="outbox-1", from_us=1, to_us=2, samples=9, reason="OutboxFull"
    )
    await agent.send(agent_pb2.AgentMessage(gap=gap))
    while (await agent.read_until("credit")).acknowledged_through < 5000:
        pass
    await agent.telemetry(5001)

    assert (await agent.read_until("credit")).acknowledged_through == 5001
    assert agent_pb2.Gap.FromString(rig.log.of(log_pb2.GAP)[0].body) == gap


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"dt_us": []}, id="no samples"),
        pytest.param({"dt_us": [0] * 1001}, id="too many samples"),
        pytest.param({"dt_us": [0]}, id="columns of another length"),
        pytest.param({"dt_us": [5, 6]}, id="not from t0"),
        pytest.param({"t0_us": -1}, id="before 1970"),
        pytest.param({"t0_us": 2**62}, id="far future"),
        pytest.param({"columns": []}, id="no columns"),
        pytest.param({"columns": [agent_pb2.Column(values=[1.0, 2.0])]}, id="unnamed column"),
    ],
)
async def test_a_batch_that_breaks_a_rule_goes_into_quarantine_alone(
    rig: Rig, agent: Agent, changes: dict[str, object]
) -> None:
    await agent.telemetry(1, **changes)
    await agent.telemetry(2)

    refused = await agent.read_until("telemetry_refused")
    assert (refused.sequence, refused.reason) == (1, "BadTelemetry")
    while (await agent.read_until("credit")).acknowledged_through < 2:
        pass
    broken, good = rig.log.of(log_pb2.TELEMETRY)
    assert broken.refused == refused.message
    assert agent_pb2.TelemetryBatch.FromString(broken.body).sequence == 1
    assert good.refused == ""


@pytest.mark.parametrize("changes", [{"to_us": 2**62}, {"from_us": -1}, {"reason": "x" * 65}])
async def test_a_gap_that_breaks_a_rule_goes_into_quarantine_alone(
    rig: Rig, agent: Agent, changes: dict[str, Any]
) -> None:
    """An agent whose clock was in the next century would otherwise send it for ever."""
    good: dict[str, Any] = {"outbox_id": "outbox-1", "from_us": 1, "to_us": 2, "samples": 9}
    bad = agent_pb2.Gap(sequence=5, **(good | changes))
    await agent.send(agent_pb2.AgentMessage(gap=bad))
    await agent.send(agent_pb2.AgentMessage(gap=agent_pb2.Gap(sequence=6, **good)))

    assert (await agent.read_until("telemetry_refused")).sequence == 5
    while (await agent.read_until("credit")).acknowledged_through < 6:
        pass
    assert [bool(entry.refused) for entry in rig.log.of(log_pb2.GAP)] == [True, False]


async def test_an_agent_whose_gaps_outrun_the_log_is_ended(rig: Rig, agent: Agent) -> None:
    rig.log.open.clear()
    gap = agent_pb2.Gap(sequence=2000, outbox_id="outbox-1", from_us=1, to_us=2)
    for sequence in range(1, 2 * 1024**2 // (OVERHEAD_BYTES + gap.ByteSize()) + 2):
        gap.sequence = sequence
        await agent.send(agent_pb2.AgentMessage(gap=gap))

    assert (await agent.read_until("bye")).reason == "TooMuchUnstored"
    rig.log.open.set()


async def test_an_agent_whose_batches_keep_breaking_rules_is_ended(rig: Rig, agent: Agent) -> None:
    refused = 0
    for sequence in range(1, MAX_REFUSED_BATCHES + 2):
        await agent.telemetry(sequence, columns=[])
        message = await agent.read()
        while message.WhichOneof("kind") == "credit":
            message = await agent.read()
        refused += message.WhichOneof("kind") == "telemetry_refused"

    assert message.bye.reason == "BadTelemetry"
    assert refused == MAX_REFUSED_BATCHES


@pytest.mark.parametrize(
    ("later_seconds", "bucket"),
    [
        pytest.param(0, "0.5", id="fresh"),
        pytest.param(-20, "300.0", id="waited at the agent"),
        pytest.param(20, "0.5", id="from the future"),
    ],
)
async def test_how_old_a_batch_is_when_it_comes_is_counted(
    agent: Agent, later_seconds: int, bucket: str
) -> None:
    def count(le: str) -> float:
        name = "derops_gateway_sample_age_seconds_bucket"
        return REGISTRY.get_sample_value(name, {"le": le}) or 0.0

    before, younger = count(bucket), count("10.0")
    await agent.telemetry(1, t0_us=now_us() + later_seconds * SECOND_US)
    while (await agent.read_until("credit")).acknowledged_through < 1:
        pass

    assert count(bucket) == before + 1
    assert count("10.0") == younger + (bucket == "0.5")


@pytest.mark.parametrize("changes", [{"outbox_id": "another"}, {"sequence": 0}])
async def test_telemetry_that_has_no_place_ends_the_stream(
    rig: Rig, agent: Agent, changes: dict[str, object]
) -> None:
    await agent.telemetry(**({"sequence": 1} | changes))  # type: ignore[arg-type]

    assert (await agent.read_until("bye")).reason == "BadTelemetry"
    assert rig.log.of(log_pb2.TELEMETRY) == []


async def test_streams_share_appends(rig: Rig, agent: Agent) -> None:
    rig.log.open.clear()
    rig.log.asked.clear()
    await agent.telemetry(1)
    await rig.log.asked.wait()
    for sequence in range(2, 12):
        await agent.telemetry(sequence)
    await echo(agent)
    before = rig.log.appends
    rig.log.open.set()
    async with asyncio.timeout(20):
        while (await agent.read_until("credit")).acknowledged_through < 11:
            pass

    assert rig.log.appends - before == 2  # that of the first batch was under way
    assert rig.log.of(log_pb2.TELEMETRY)[0].received_us <= now_us()


async def test_a_message_above_the_cap_ends_the_stream(rig: Rig, agent: Agent) -> None:
    column = agent_pb2.Column(quantity=agent_pb2.ACTIVE_POWER_WATTS, values=[1.5] * 1000)

    await agent.telemetry(1, dt_us=[0] * 1000, columns=[column] * 9)

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await agent.read_until("bye")
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rig.log.of(log_pb2.TELEMETRY) == []
