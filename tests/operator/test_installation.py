"""What is broken for all assets: judged from what replicas say, and told in one ConfigMap."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.operator.making import at
from tests.stack import identities
from tests.stack.controlplane import ControlPlane
from tests.stack.processes import StackError

from derops.data_path import Link
from derops.installation import (
    CONFIG_MAP,
    HOLDS,
    KEY,
    LINKS,
    RENEWED_EVERY_SECONDS,
    Condition,
)
from derops.observability import Readiness
from derops.wire.v1 import control_pb2
from derops_operator.cluster.client import Kube
from derops_operator.gateways.headend import MAX_MESSAGE, read_links
from derops_operator.gateways.replicas import Fleet
from derops_operator.gateways.views import LOST_AFTER_US
from derops_operator.installation import WRITTEN_EVERY_SECONDS, InstallationTeller
from derops_operator.reconciling.installation import SETTLING_US, read_conditions
from derops_operator.resources.instants import format_second

ALL = {Link.EVENT_LOG: "", Link.WRITER: "", Link.DATABASE: ""}
WELL = ["True"] * 4


def says(links: dict[Any, str], message: str = "evidence") -> control_pb2.HeadendState:
    return control_pb2.HeadendState(
        links=[
            control_pb2.LinkState(link=str(link), reason=reason, message=message)
            for link, reason in links.items()
        ]
    )


@dataclass
class Board:
    """The ConfigMap, without an API server; and how often it was written."""

    texts: list[str] = field(default_factory=list)
    found: object = None
    failure: Exception | None = None

    async def read(self) -> object:
        return self.found

    async def write(self, text: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.texts.append(text)


class World:
    """An operator with some replicas, in virtual time."""

    def __init__(self, *replicas: str, expected: int | None = None) -> None:
        self.seconds = 0.0
        self.fleet = Fleet(at(0))
        self.fleet.expected = len(replicas) if expected is None else expected
        self.board = Board()
        kube: Any = None
        self.teller = InstallationTeller(
            kube, self.fleet, Readiness(), "derops-system", lambda: at(self.seconds)
        )
        config_map: Any = self.board
        self.teller._config_map = config_map
        for name in replicas:
            self.connect(name)

    def connect(self, name: str) -> None:
        self.fleet.add_replica(name, at(-100), 1, at(self.seconds))

    def say(self, name: str, links: dict[Any, str], message: str = "evidence") -> None:
        self.fleet.headend.note(name, says(links, message))

    async def wait(self, seconds: float = WRITTEN_EVERY_SECONDS) -> None:
        for _ in range(round(seconds)):
            self.seconds += 1
            await self.teller.turn(self.seconds)

    @property
    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.board.texts[-1])
        return told

    @property
    def statuses(self) -> list[str]:
        return [each["status"] for each in self.told["conditions"]]

    def condition(self, name: Condition) -> dict[str, str]:
        found: dict[str, str] = next(
            each for each in self.told["conditions"] if each["type"] == name
        )
        return found


async def test_where_all_hold_it_says_so_in_the_order_of_the_path() -> None:
    world = World("gateway-0")
    world.say("gateway-0", ALL)
    await world.wait(1)

    assert [each["type"] for each in world.told["conditions"]] == list(LINKS)
    assert world.statuses == WELL
    assert {each["reason"] for each in world.told["conditions"]} == {HOLDS}
    assert world.told["observedAt"] == format_second(at(1))


@pytest.mark.parametrize(
    ("link", "reason", "condition"),
    [
        (Link.EVENT_LOG, "LogFull", Condition.LOG_TAKES_DATA),
        (Link.WRITER, "WriterSilent", Condition.WRITER_FOLLOWS),
        (Link.WRITER, "LogDamaged", Condition.WRITER_FOLLOWS),
        (Link.DATABASE, "DatabaseFull", Condition.DATABASE_STORES),
    ],
)
async def test_a_broken_link_is_named_and_clears_without_a_trace_on_the_others(
    link: Link, reason: str, condition: Condition
) -> None:
    world = World("gateway-0")
    world.say("gateway-0", ALL)
    await world.wait(1)
    world.say("gateway-0", ALL | {link: reason}, "5 of 4")
    await world.wait(WRITTEN_EVERY_SECONDS + 1)

    told = world.condition(condition)
    assert (told["status"], told["reason"], told["message"]) == (
        "False", reason, "gateway-0: 5 of 4",
    )  # fmt: skip
    assert sorted(world.statuses) == ["False", "True", "True", "True"]
    assert told["lastTransitionTime"] > format_second(at(1))

    world.say("gateway-0", ALL)
    await world.wait(WRITTEN_EVERY_SECONDS + 1)
    assert world.statuses == WELL


async def test_a_lost_gateway_is_told_once_it_is_not_just_restarting() -> None:
    world = World("gateway-0", "gateway-1")
    for name in ("gateway-0", "gateway-1"):
        world.say(name, ALL)
    await world.wait(1)
    world.fleet.lose_replica("gateway-1", at(1))
    await world.wait(20)
    assert world.statuses == WELL

    await world.wait(LOST_AFTER_US / 1e6)
    told = world.condition(Condition.GATEWAYS_CONNECTED)
    assert (told["status"], told["reason"]) == ("False", "GatewayLost")
    assert "1 of 2" in told["message"]
    assert world.statuses == ["False", "True", "True", "True"]

    world.fleet.lose_replica("gateway-0", at(world.seconds))
    await world.wait(LOST_AFTER_US / 1e6 + WRITTEN_EVERY_SECONDS)
    assert world.statuses == ["False", "Unknown", "Unknown", "Unknown"]
    assert world.condition(Condition.DATABASE_STORES)["reason"] == "GatewayLost"


async def test_a_gateway_that_returns_may_take_its_time_to_judge() -> None:
    world = World("gateway-0")
    world.say("gateway-0", ALL)
    await world.wait(1)
    world.connect("gateway-0")
    world.say("gateway-0", {Link.EVENT_LOG: ""})
    await world.wait(40)
    assert world.statuses == WELL

    await world.wait(SETTLING_US / 1e6)
    told = world.condition(Condition.WRITER_FOLLOWS)
    assert (told["status"], told["reason"]) == ("Unknown", "NotTold")
    assert "gateway-0" in told["message"]


async def test_an_older_gateway_says_nothing_and_the_rest_is_told() -> None:
    world = World("gateway-0")
    await world.wait(SETTLING_US / 1e6 + 1)

    assert world.statuses == ["True", "Unknown", "Unknown", "Unknown"]
    assert {each["reason"] for each in world.told["conditions"][1:]} == {"NotTold"}


async def test_it_is_renewed_without_news_and_not_more_often() -> None:
    world = World("gateway-0")
    world.say("gateway-0", ALL)
    await world.wait(10 * RENEWED_EVERY_SECONDS)

    assert len(world.board.texts) == 10
    first, last = json.loads(world.board.texts[0]), world.told
    assert first["observedAt"] < last["observedAt"]
    assert first["conditions"] == last["conditions"]


async def test_an_operator_that_starts_again_keeps_since_when_a_link_is_broken() -> None:
    before = World("gateway-0")
    before.say("gateway-0", ALL | {Link.DATABASE: "DatabaseUnreachable"})
    await before.wait(1)
    since = before.condition(Condition.DATABASE_STORES)["lastTransitionTime"]

    after = World("gateway-0")
    after.seconds = 500
    after.connect("gateway-0")
    after.board.found = before.told["conditions"]
    after.say("gateway-0", ALL | {Link.DATABASE: "DatabaseUnreachable"})
    await after.wait(1)

    assert after.condition(Condition.DATABASE_STORES)["lastTransitionTime"] == since


async def test_an_operator_that_has_just_begun_says_nothing_yet() -> None:
    world = World(expected=1)
    await world.wait(SETTLING_US / 1e6 - 1)
    assert world.board.texts == []

    await world.wait(2)
    assert world.statuses == ["False", "Unknown", "Unknown", "Unknown"]


async def test_after_a_failure_it_tries_again_and_not_at_once() -> None:
    world = World("gateway-0")
    world.say("gateway-0", ALL)
    world.board.failure = OSError("away")
    failures = 0
    for _ in range(60):
        try:
            await world.wait(1)
        except OSError:
            failures += 1
    assert failures == 60 / WRITTEN_EVERY_SECONDS

    world.board.failure = None
    await world.wait(WRITTEN_EVERY_SECONDS)
    assert world.statuses == WELL


@pytest.mark.parametrize(
    "found",
    [
        None, 5, "x", {}, [5], [{}], [{"type": "DatabaseStores"}],
        [{"type": "Mine", "status": "True", "reason": "r", "message": "m",
          "lastTransitionTime": "2020-01-01T00:00:00Z"}],
        [{"type": "DatabaseStores", "status": "Maybe", "reason": "r", "message": "m",
          "lastTransitionTime": "2020-01-01T00:00:00Z"}],
        [{"type": "DatabaseStores", "status": "True", "reason": "r", "message": "m",
          "lastTransitionTime": "9999-01-01T00:00:00Z"}],
        [{"type": "DatabaseStores", "status": "True", "reason": "r", "message": "m",
          "lastTransitionTime": "yesterday"}],
        [{"type": "DatabaseStores", "status": "True", "reason": "r", "message": "\ud800",
          "lastTransitionTime": "2020-01-01T00:00:00Z"}],
    ],
)  # fmt: skip
def test_what_somebody_wrote_there_is_not_believed(found: object) -> None:
    assert read_conditions(found, at(0)) == []


def test_only_links_and_reasons_that_go_together_are_read() -> None:
    state = says({
        "Writer": "WriterBehind", "Database": "LogFull", "Stream": "AgentOffline",
        "EventLog": "Nonsense", "Gateway": "GatewayLost",
    })  # fmt: skip
    twice = control_pb2.HeadendState(links=[*state.links, *says({"Writer": ""}).links])

    found = read_links(twice)

    assert {link: told.fault for link, told in found.items()} == {Link.WRITER: "WriterBehind"}


def test_words_are_cut_and_have_no_control_characters() -> None:
    (told,) = read_links(says({"Writer": ""}, "a\n\x1b[31mb\u202e" + "x" * 10_000)).values()

    assert told.message.startswith("a [31mb")
    assert len(told.message) <= MAX_MESSAGE


# At a real API server, with the chart's rules and no others


@pytest.fixture(scope="module")
def account(kube: ControlPlane) -> str:
    return identities.program_kubeconfig(kube, "operator")


@pytest.fixture
async def real(
    kube: ControlPlane, account: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[InstallationTeller]:
    monkeypatch.setenv("KUBECONFIG", account)
    client = await Kube.connect()
    fleet = Fleet(at(0))
    fleet.expected = 1
    now_us = time.time_ns() // 1000
    fleet.add_replica("gateway-0", now_us, 1, now_us)
    fleet.headend.note("gateway-0", says(ALL))
    yield InstallationTeller(
        client, fleet, Readiness(), identities.NAMESPACE, lambda: time.time_ns() // 1000
    )
    await client.close()


def shown(kube: ControlPlane) -> dict[str, Any]:
    text = kube.kubectl("get", "configmap", CONFIG_MAP, "-n", identities.NAMESPACE, "-o", "json")
    manifest: dict[str, Any] = json.loads(text)
    return manifest


def change(kube: ControlPlane, patch: dict[str, Any]) -> None:
    kube.kubectl(
        "patch", "configmap", CONFIG_MAP, "-n", identities.NAMESPACE, "--type=merge",
        "-p", json.dumps(patch),
    )  # fmt: skip


async def test_it_is_written_with_the_charts_rights_and_mended_whatever_somebody_does(
    kube: ControlPlane, real: InstallationTeller
) -> None:
    assert await real.turn(1000)
    first = shown(kube)
    assert [each["status"] for each in json.loads(first["data"][KEY])["conditions"]] == WELL
    assert len(first["data"][KEY]) < 8192

    patches: tuple[dict[str, Any], ...] = (
        {"data": {KEY: "nonsense"}},
        {"data": {"more": "x" * 100_000}},
        {"data": {KEY: None}, "metadata": {"labels": None}},
        {"data": {KEY: "frozen"}, "immutable": True},
    )
    for number, patch in enumerate(patches, start=1):
        change(kube, patch)
        assert await real.turn(1000 + number * RENEWED_EVERY_SECONDS)
        mended = shown(kube)
        assert set(mended["data"]) == {KEY}
        assert json.loads(mended["data"][KEY])["conditions"][0]["status"] == "True"
        assert not mended.get("immutable")
        assert mended["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "derops"

    kube.kubectl("delete", "configmap", CONFIG_MAP, "-n", identities.NAMESPACE)
    assert await real.turn(2000)
    assert json.loads(shown(kube)["data"][KEY])["observedAt"]


def test_the_operator_may_write_no_other_config_map_there(kube: ControlPlane, account: str) -> None:
    for name, may in ((CONFIG_MAP, "yes"), ("another", "no")):
        for verb in ("get", "create", "patch", "delete"):
            question = ("auth", "can-i", verb, f"configmaps/{name}", "-n", identities.NAMESPACE)
            as_operator = f"--as={identities.OPERATOR_USER}"
            try:
                answer = kube.kubectl(*question, as_operator).strip()
            except StackError:
                answer = "no"
            assert answer == may, (verb, name)
