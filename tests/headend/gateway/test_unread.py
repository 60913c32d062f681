"""What the operator cannot read stays as it is held; what is not held keeps its asset waiting."""

import grpc
import pytest
from tests.headend.gateway.rig import Operator, Rig
from tests.pki import Leaf

from derops.wire.v1 import agent_pb2, control_pb2


def unread(uid: str, asset: str = "battery") -> control_pb2.Unread:
    return control_pb2.Unread(uid=uid, namespace="pilot", asset_name=asset)


def dispatches(messages: list[agent_pb2.GatewayMessage]) -> list[str]:
    return [each.dispatch.uid for each in messages if each.HasField("dispatch")]


@pytest.fixture
async def running(rig: Rig, leaf: Leaf) -> Operator:
    """An operator by whose word ``battery`` runs a dispatch: it was written to its agent."""
    operator = rig.operator()
    await operator.snapshot([rig.asset("battery", leaf)], [rig.dispatch("d1")])
    agent = rig.agent(leaf)
    assert dispatches(await agent.connect()) == ["d1"]
    await agent.close()
    return operator


@pytest.mark.usefixtures("running")
async def test_a_dispatch_that_is_unread_stays_as_it_was_held(rig: Rig, leaf: Leaf) -> None:
    restarted = rig.operator()
    await restarted.snapshot([rig.asset("battery", leaf)], start_ms=2000, unread=[unread("d1")])

    assert (await restarted.delivery("d1")).ledger_id == "ledger-1", "who got it is forgotten"
    assert dispatches(await rig.agent(leaf).connect(epoch=2)) == ["d1"]


@pytest.mark.usefixtures("running")
async def test_a_live_agent_hears_nothing_of_a_snapshot_that_could_not_be_read(
    rig: Rig, leaf: Leaf
) -> None:
    agent = rig.agent(leaf)
    await agent.connect(epoch=2)

    restarted = rig.operator()
    await restarted.snapshot([], start_ms=2000, unread=[unread("d1"), unread("uid-battery")])

    await restarted.say(dispatch=rig.dispatch("d2"))
    assert (await agent.read_until("dispatch")).uid == "d2", "it was settled, or ended"


@pytest.mark.usefixtures("running")
async def test_what_stayed_goes_when_it_is_read_or_deleted(rig: Rig, leaf: Leaf) -> None:
    restarted = rig.operator()
    await restarted.snapshot(
        [rig.asset("battery", leaf)], start_ms=2000, unread=[unread("d1"), unread("d0")]
    )
    await restarted.say(dispatch=rig.dispatch("d1", generation=2))
    await restarted.accepted(await restarted.say(dispatch_removed="d0"))

    (found,) = [
        each.dispatch
        for each in await rig.agent(leaf).connect(epoch=2)
        if each.HasField("dispatch")
    ]
    assert (found.uid, found.generation) == ("d1", 2)

    await restarted.accepted(await restarted.say(dispatch_removed="d1"))
    assert dispatches(await rig.agent(leaf).connect(epoch=3)) == []


async def test_no_agent_is_told_what_lacks_something_of_its_asset(rig: Rig, leaf: Leaf) -> None:
    other = rig.agent_ca.agent("other")
    operator = rig.operator()
    assets = [rig.asset("battery", leaf), rig.asset("other", other)]
    await operator.snapshot(assets, unread=[unread("d1")])

    code, details = await rig.agent(leaf).refusal()

    assert code is grpc.StatusCode.UNAVAILABLE, "an agent must try again"
    assert details.startswith("AssetUnread: the operator cannot read d1")
    assert await rig.agent(other).connect(), "another asset waits for it"

    await rig.stop()
    await rig.start()
    assert (await rig.agent(leaf).refusal())[1].startswith("AssetUnread"), "forgotten in a restart"

    restarted = rig.operator()
    await restarted.snapshot(assets, start_ms=2000, unread=[unread("d1")])
    await restarted.accepted(await restarted.say(dispatch=rig.dispatch("d1")))
    assert dispatches(await rig.agent(leaf).connect()) == ["d1"]


async def test_an_asset_that_is_unread_and_not_held_waits_to_be_read(rig: Rig, leaf: Leaf) -> None:
    operator = rig.operator()
    await operator.snapshot([], unread=[unread("uid-battery")])
    assert (await rig.agent(leaf).refusal())[1].startswith("AssetUnread")

    await operator.accepted(await operator.say(asset=rig.asset("battery", leaf)))

    assert await rig.agent(leaf).connect()


@pytest.mark.usefixtures("running")
async def test_an_asset_that_is_unread_keeps_its_ledger_and_its_dispatches(
    rig: Rig, leaf: Leaf
) -> None:
    restarted = rig.operator()
    await restarted.snapshot([], start_ms=2000, unread=[unread("uid-battery"), unread("d1")])
    await rig.stop()
    await rig.start()

    assert dispatches(await rig.agent(leaf).connect(epoch=2)) == ["d1"]


async def test_a_snapshot_that_counts_more_unread_than_it_tells_is_refused(rig: Rig) -> None:
    operator = rig.operator()
    await operator.say(snapshot_begin=control_pb2.SnapshotBegin(operator_start_ms=1))
    await operator.say(unread=unread("d1"))
    await operator.say(snapshot_end=control_pb2.SnapshotEnd(unread=2))

    await operator.read_until("hello")
    with pytest.raises(grpc.aio.AioRpcError, match="1 of 2 that are unread"):
        await operator.read_until("accepted_version")
