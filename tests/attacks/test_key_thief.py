"""Whoever copied an agent's key: locks nobody out for good, and is noticed."""

import asyncio
from pathlib import Path

import grpc
import pytest
from tests.headend.gateway.conftest import _no_pace, leaf, operator, rig
from tests.headend.gateway.counting import clones_suspected, refused_streams
from tests.headend.gateway.rig import Agent, Operator, Rig, now_ms, refusal_of
from tests.pki import Leaf

from derops.wire.v1 import agent_pb2, agent_pb2_grpc, control_pb2, dispatch_pb2
from derops_headend.gateway.agent_link import MAX_OPENING

__all__ = ["_no_pace", "leaf", "operator", "rig"]

HOLDER = "true-agent"


@pytest.fixture
def stolen(leaf: Leaf) -> Leaf:
    """The key that the true agent has, and a thief as well."""
    return leaf


async def suspicion(operator: Operator, after_us: int = 0) -> control_pb2.Session:
    """Wait until the operator is told that a clone is suspected."""
    while True:
        session = await operator.read_until("session")
        if session.suspected_us > after_us:
            return session  # type: ignore[no-any-return]


def lifted(
    asset: dispatch_pb2.Asset, session: control_pb2.Session, generation: int = 2
) -> dispatch_pb2.Asset:
    """Return an asset after the operator has quarantined it and a person has lifted that."""
    asset.generation = generation
    asset.identity.suspected_us = session.suspected_us
    return asset


async def test_an_epoch_beyond_all_others_locks_nobody_out(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K1: a thief says epoch 2^63-1; `EpochTooHigh` is counted, the true stream stays."""
    true, before = rig.agent(stolen), refused_streams("EpochTooHigh")
    await true.connect(now_ms(), HOLDER)

    thief = rig.agent(stolen)
    await thief.send(thief.hello(2**63 - 1, "thief"))
    code, details = await thief.refusal()

    assert code is grpc.StatusCode.UNAVAILABLE
    reason, floor = details.split(":")[0], int(details.split()[2].rstrip(":"))
    assert (reason, abs(floor - now_ms()) < 60_000) == ("EpochTooHigh", True)
    assert refused_streams("EpochTooHigh") == before + 1
    await operator.say(dispatch=rig.dispatch("d1"))
    assert (await true.read_until("dispatch")).uid == "d1"
    await rig.agent(stolen).connect(now_ms() + 5, HOLDER)


async def test_the_highest_epoch_that_is_allowed_is_exceeded_at_once(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K2: a thief takes over with an epoch of five minutes ahead; the return is told."""
    true, thief, before = rig.agent(stolen), rig.agent(stolen), clones_suspected()
    await true.connect(now_ms(), HOLDER)
    await thief.connect(now_ms() + 299_000, "thief")
    assert (await true.read_until("bye")).reason == "Superseded"

    assert await refusal_of(rig.agent(stolen), now_ms(), HOLDER) == "CloneSuspected"

    assert (await thief.read_until("bye")).reason == "CloneSuspected"
    assert clones_suspected() == before + 1
    session = await suspicion(operator)
    assert (session.end_reason, session.connected) == ("CloneSuspected", False)


async def test_nobody_is_heard_between_a_suspicion_and_its_quarantine(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K3: a thief comes again before the operator has acted; it is refused like the true one."""
    await rig.agent(stolen).connect(now_ms(), HOLDER)
    await rig.agent(stolen).connect(now_ms() + 1, "thief")
    assert await refusal_of(rig.agent(stolen), now_ms() + 2, HOLDER) == "CloneSuspected"
    session = await suspicion(operator)

    for instance in ("thief", HOLDER, "another"):
        late = rig.agent(stolen)
        assert (await late.refusal())[1].startswith("CloneSuspected: "), instance

    await operator.close()
    await rig.stop()
    await rig.start()  # a restart while the operator is away forgets nothing
    assert (await rig.agent(stolen).refusal())[1].startswith("CloneSuspected: ")
    again = rig.operator()
    again.version = 100
    await again.snapshot([rig.asset("battery", stolen)])
    assert (await suspicion(again)).suspected_us == session.suspected_us


@pytest.mark.parametrize("count", [17, 60])
async def test_throw_away_ids_do_not_push_the_true_agent_out_of_memory(
    rig: Rig, stolen: Leaf, operator: Operator, count: int
) -> None:
    """K4: a thief connects with 17 (60) ids of which it uses each once; the return is told."""
    true = rig.agent(stolen)
    await true.connect(now_ms(), HOLDER)
    for number in range(count):
        thief = rig.agent(stolen)
        await thief.connect(now_ms() + 1000 + number, f"throw-away-{number}")
        await thief.send(agent_pb2.AgentMessage(bye=agent_pb2.Bye(reason="Shutdown")))
        while await thief.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass
        await thief.close()

    assert await refusal_of(rig.agent(stolen), now_ms() + 9000, HOLDER) == "CloneSuspected"

    await suspicion(operator)


async def test_two_living_holders_are_noticed_within_three_supersessions(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K5: a thief takes over again and again from a living stream, each time as a new process."""
    before = clones_suspected()
    agents = []
    for number in range(4):
        agents.append(rig.agent(stolen))
        await agents[-1].connect(now_ms() + number, f"process-{number}")

    assert await refusal_of(rig.agent(stolen), now_ms() + 9, "process-4") == "CloneSuspected"

    assert clones_suspected() == before + 1
    assert (await agents[-1].read_until("bye")).reason == "CloneSuspected"
    await suspicion(operator)


async def test_an_older_key_never_replaces_the_stream_of_a_newer_one(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K6: a thief of the key before the last has the highest epoch; `CertificateSuperseded`."""
    newer, before = rig.agent_ca.agent("battery"), refused_streams("CertificateSuperseded")
    asset = rig.asset("battery", stolen)
    asset.identity.next.CopyFrom(newer.known)
    await operator.accepted(await operator.say(asset=asset))
    thief = rig.agent(stolen)
    await thief.connect(now_ms() + 299_000, "thief")

    true = rig.agent(newer)
    await true.connect(now_ms(), HOLDER)  # a lower epoch: the newer key takes over all the same
    assert (await thief.read_until("bye")).reason == "Superseded"
    back = rig.agent(stolen)
    assert await refusal_of(back, now_ms() + 299_500, "thief-2") == "CertificateSuperseded"

    assert refused_streams("CertificateSuperseded") == before + 1
    await operator.say(dispatch=rig.dispatch("d1"))
    assert (await true.read_until("dispatch")).uid == "d1"
    await rig.agent(newer).connect(now_ms() + 1, HOLDER)


async def test_after_a_lift_the_true_agent_is_heard_again_with_either_key(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K7: the instance that was locked out comes back after its key was kept, or was changed."""
    await rig.agent(stolen).connect(now_ms(), HOLDER)
    await rig.agent(stolen).connect(now_ms() + 1, "thief")
    assert await refusal_of(rig.agent(stolen), now_ms() + 2, HOLDER) == "CloneSuspected"
    session = await suspicion(operator)
    kept = lifted(rig.asset("battery", stolen), session)
    await operator.accepted(await operator.say(asset=kept))
    await rig.agent(stolen).connect(now_ms() + 3, HOLDER)
    assert await refusal_of(rig.agent(stolen), now_ms() + 9, "thief") == "CloneSuspected"
    session = await suspicion(operator, session.suspected_us)

    fresh = rig.agent_ca.agent("battery")
    revoked = lifted(rig.asset("battery", fresh), session, generation=3)
    await operator.accepted(await operator.say(asset=revoked))

    true = rig.agent(fresh)
    await true.connect(now_ms() + 4, HOLDER)
    code, details = await rig.agent(stolen).refusal()
    assert (code, details.split(":")[0]) == (grpc.StatusCode.UNAVAILABLE, "UnknownSerial")
    await operator.say(dispatch=rig.dispatch("d1"))
    assert (await true.read_until("dispatch")).uid == "d1"


async def test_a_restarted_gateway_and_another_replica_know_who_was_replaced(
    rig: Rig, stolen: Leaf, operator: Operator, tmp_path: Path
) -> None:
    """K8: the gateway restarts between takeover and return, or the return is at another one."""
    await rig.agent(stolen).connect(now_ms(), HOLDER)
    await rig.agent(stolen).connect(now_ms() + 1, "thief")
    instances: dict[str, control_pb2.Instance] = {}
    while not any(each.replaced_us for each in instances.values()):
        session = await operator.read_until("session")
        instances |= {each.id: each for each in session.instances}

    await rig.stop()
    await rig.start()
    assert await refusal_of(rig.agent(stolen), now_ms() + 2, HOLDER) == "CloneSuspected"

    (tmp_path / "other").mkdir()
    other = Rig(tmp_path / "other")
    other.join(rig)
    await other.start()
    there = other.operator()
    await there.snapshot([other.asset("battery", stolen)])
    seen = control_pb2.EpochSeen(
        asset_uid="uid-battery",
        epoch=session.epoch,
        serial_number=stolen.known.serial_number,
        instances=instances.values(),
    )
    await there.accepted(await there.say(epoch_seen=seen))
    assert await refusal_of(other.agent(stolen), now_ms() + 3, HOLDER) == "CloneSuspected"
    await suspicion(there)
    await other.stop()


async def test_a_thief_of_the_newest_key_is_noticed_by_the_older_one(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K10: a thief reads a renewed key before the agent's mount has it; the return is told."""
    current = rig.agent_ca.agent("battery")
    asset = rig.asset("battery", current)
    asset.identity.next.CopyFrom(stolen.known)
    await operator.accepted(await operator.say(asset=asset))
    await rig.agent(current).connect(now_ms(), HOLDER)
    thief = rig.agent(stolen)
    await thief.connect(now_ms() - 1000, "thief")

    assert await refusal_of(rig.agent(current), now_ms() + 1, HOLDER) == "CloneSuspected"

    assert (await thief.read_until("bye")).reason == "CloneSuspected"
    await suspicion(operator)


async def test_no_peer_is_told_the_instance_id_of_another(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K20: a thief holds the stream until the true agent returns, to learn how it names itself."""
    thief = rig.agent(stolen)
    await rig.agent(stolen).connect(now_ms(), HOLDER)
    await thief.connect(now_ms() + 1, "thief")
    assert await refusal_of(rig.agent(stolen), now_ms() + 2, HOLDER) == "CloneSuspected"

    assert HOLDER not in str(await thief.read_until("bye"))
    refusal = await rig.log.connection("Refused")
    assert HOLDER not in refusal.message


async def test_streams_that_say_nothing_keep_nobody_out(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K14: a thief holds all the streams that may wait for a Hello; who has one to say is heard."""
    before = refused_streams("TooManyStreams")
    silent = [rig.agent(stolen) for _ in range(MAX_OPENING + 1)]
    told = [asyncio.create_task(each.refusal()) for each in silent]
    ended, _ = await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)  # the others wait
    assert {each.result()[1].partition(":")[0] for each in ended} == {"TooManyStreams"}

    await rig.agent(stolen).connect(now_ms(), HOLDER)

    assert refused_streams("TooManyStreams") == before + 2
    for each in told:
        each.cancel()
    await asyncio.gather(*told, return_exceptions=True)


async def test_a_hello_that_was_on_its_way_when_another_took_over_is_no_clone(
    rig: Rig, stolen: Leaf, operator: Operator
) -> None:
    """K9: nobody attacks: a stream that was opened before its successor's is merely late."""
    before = clones_suspected()
    first = rig.agent(stolen)
    await first.connect(now_ms(), "first")
    late = Agent(first.channel, agent_pb2_grpc.AgentLinkStub(first.channel).Connect())  # type: ignore[no-untyped-call]
    for number in range(1, 4):  # what is answered behind it on one connection: it has begun
        beat = agent_pb2.Heartbeat(agent_sent_us=number)
        await first.send(agent_pb2.AgentMessage(heartbeat=beat))
        await first.read_until("heartbeat_reply")
    second = rig.agent(stolen)
    await second.connect(now_ms() + 1, "second")

    assert await refusal_of(late, now_ms() + 2, "first") == "EpochTooLow"

    assert clones_suspected() == before
    await operator.say(dispatch=rig.dispatch("d1"))
    assert (await second.read_until("dispatch")).uid == "d1"
