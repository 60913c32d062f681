"""Attacks of whoever has a gateway replica, on what the operator says of the installation."""

import json

import pytest
from tests.operator.test_installation import ALL, WELL, World

from derops.data_path import Link, SharedFault
from derops.installation import LINKS, RENEWED_EVERY_SECONDS, Condition
from derops.wire.v1 import control_pb2
from derops_operator.gateways.intake import ReplicaIntake
from derops_operator.installation import WRITTEN_EVERY_SECONDS

MOST_BYTES = 16 * 1024


def heard(world: World, name: str, state: control_pb2.HeadendState) -> None:
    """Have the operator hear it as it hears all that a replica says."""
    desired: object = None
    intake = ReplicaIntake(
        desired,  # type: ignore[arg-type]  # not used for this
        world.fleet,
        lambda _: None,
        lambda _: None,
        lambda _: True,
        lambda: 0,
    )
    intake.take(name, control_pb2.ReplicaMessage(headend=state))


@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f600", "\x00", '"', "\u202e"])
async def test_nonsense_does_not_grow_what_is_told(character: str) -> None:
    """R176: a replica has the operator keep or write what is long, or more than there is."""
    world = World("gateway-0", "gateway-" + "1" * 10_000)
    text = character * 2_000
    links = [
        control_pb2.LinkState(link=link, reason=reason, message=text, since_us=2**62)
        for reason in (*SharedFault, "", text)
        for link in (*Link, text)
    ]
    for name in world.fleet.replicas:
        heard(world, name, control_pb2.HeadendState(links=links[:8]))
        heard(world, name, control_pb2.HeadendState(links=links[-8:]))
        world.say(name, ALL | {Link.WRITER: "WriterBehind"}, text)
    await world.wait(2 * RENEWED_EVERY_SECONDS)

    told = world.board.texts[-1]
    assert len(told.encode()) < MOST_BYTES
    assert [each["type"] for each in json.loads(told)["conditions"]] == list(LINKS)
    assert set(world.told["conditions"][0]) == {
        "type", "status", "reason", "message", "lastTransitionTime",
    }  # fmt: skip
    assert all(len(world.fleet.headend.of(name)) <= 3 for name in world.fleet.replicas)


async def test_a_replica_that_changes_its_mind_has_nothing_written_more_often() -> None:
    """R177: a replica has the operator write without an end."""
    world = World("gateway-0")
    world.say("gateway-0", ALL)
    await world.wait(1)
    before = len(world.board.texts)
    for second in range(120):
        for reason in ("WriterBehind", "", "LogDamaged"):
            world.say("gateway-0", ALL | {Link.WRITER: reason}, str(second))
        world.say("gateway-0", ALL | {Link.WRITER: ["WriterBehind", ""][second % 2]}, str(second))
        await world.wait(1)

    assert len(world.board.texts) - before <= 120 / WRITTEN_EVERY_SECONDS


async def test_a_replica_speaks_for_itself_alone() -> None:
    """R178: a replica hides what another one says, or says it in the other's name."""
    world = World("gateway-0", "gateway-1")
    world.say("gateway-0", ALL | {Link.DATABASE: "DatabaseFull"}, "no room")
    world.say("gateway-1", ALL | {Link.GATEWAY: "GatewayLost"}, "gateway-0: all is well")
    await world.wait(1)

    told = world.condition(Condition.DATABASE_STORES)
    assert (told["reason"], told["message"]) == ("DatabaseFull", "gateway-0: no room")
    assert world.condition(Condition.GATEWAYS_CONNECTED)["status"] == "True"

    world.say("gateway-0", ALL)
    world.say("gateway-1", ALL | {Link.DATABASE: "DatabaseFailing"}, "gateway-0: it burns")
    await world.wait(WRITTEN_EVERY_SECONDS + 1)
    assert world.condition(Condition.DATABASE_STORES)["message"].startswith("gateway-1: ")

    world.say("gateway-1", ALL)
    await world.wait(WRITTEN_EVERY_SECONDS + 1)
    assert world.statuses == WELL
