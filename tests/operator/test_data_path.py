"""Whether the data of an asset flows, from what replicas say to one condition, and how often."""

import random
from dataclasses import replace
from typing import Any

import pytest
from tests.operator.making import asset, at
from tests.operator.test_assets import after, decide
from tests.operator.test_devices import BAD, UID, WELL, condition
from tests.operator.test_kstatus import computed, of
from tests.operator.test_replicas import fleet

from derops.data_path import CONDITION, LINK_OF, AssetFault, Link
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_operator.gateways.devices import DEVICE_EVERY_US, PATH_WORDS_BYTES
from derops_operator.gateways.replicas import SESSIONS_WITHIN_US, Fleet
from derops_operator.gateways.views import LOST_AFTER_US, Connectivity, PathView, SessionView
from derops_operator.reconciling.conditions import find
from derops_operator.reconciling.data_path import data_flowing
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import format_second, parse_instant

GOOD = {"serialNumber": "7f", "publicKeySHA256": "0", "notAfter": format_second(at(86_400))}
ENROLLED = {"uri": "spiffe://derops.test/x", "current": GOOD}
TOLD = [fault for fault in AssetFault if LINK_OF[fault] is not Link.STREAM]
FLOWS = control_pb2.LinkState()


def broken(fault: AssetFault, message: str = "75 s old, 60 s are allowed") -> control_pb2.LinkState:
    return control_pb2.LinkState(link=LINK_OF[fault], reason=fault, message=message)


class World:
    """One asset, the replicas that speak of it, and the status that the operator gives it."""

    def __init__(self, *names: str, interval_seconds: int = 10) -> None:
        self.fleet = fleet(*(names or ("one",)))
        self.asset = asset(
            telemetry={"intervalSeconds": interval_seconds}, status={"identity": ENROLLED}
        )
        self.writes = self.changes = 0
        self.again_us: int | None = None

    def open(self, seconds: float, name: str = "one") -> None:
        """Have the agent connect."""
        self._note(name, control_pb2.Session(connected=True, epoch=1, since_us=at(seconds)))

    def close(self, seconds: float, reason: str = "ConnectionLost", name: str = "one") -> None:
        """Have the agent lose its stream."""
        ended = control_pb2.Session(epoch=1, since_us=at(seconds), end_reason=reason)
        self._note(name, ended)

    def _note(self, name: str, session: control_pb2.Session) -> None:
        session.asset_uid = UID
        self.fleet.note_session(name, session, dispatch_pb2.IdentityLedger(), session.since_us)

    def tell(
        self,
        seconds: float,
        path: control_pb2.LinkState | None,
        facts: agent_pb2.DeviceFacts | None = WELL,
        name: str = "one",
    ) -> None:
        """Have the gateway tell of device and data path."""
        state = control_pb2.DeviceState(
            asset_uid=UID, facts=facts, received_us=at(seconds), path=path
        )
        self.fleet.note_device(name, state)

    def look(self, seconds: float) -> dict[str, Any]:
        """Decide and store; return the condition, empty where there is none."""
        session = self.fleet.session(UID, at(seconds))
        decision = decide(self.asset, session=session, seconds=seconds)
        before = self.told
        self.writes += decision.status != self.asset.status
        self.asset, self.again_us = after(self.asset, decision), decision.again_us
        self.changes += before != self.told
        return self.told

    @property
    def told(self) -> dict[str, Any]:
        return dict(find(self.asset.conditions, CONDITION))

    @property
    def words(self) -> tuple[str, str]:
        return self.told["status"], self.told["reason"]

    def flow(self, seconds: float) -> None:
        """Have the agent connect, and its data flow."""
        self.open(seconds)
        self.tell(seconds, FLOWS)
        self.look(seconds)
        assert self.words == ("True", "Flowing")

    def restart(self, seconds: float) -> None:
        """Start the operator anew: what it knows it hears again."""
        told, session = self.fleet._devices, self.fleet._sessions[UID]["one"]
        self.fleet = Fleet(at(seconds))
        self.fleet.expected = 1
        self.look(seconds)
        self.fleet.add_replica("one", at(-100), 1, at(seconds + 1))
        self.look(seconds + 1)
        self.fleet.note_accepted("one", 1, at(seconds + 2))
        kept = control_pb2.Session()
        kept.CopyFrom(session)
        self.fleet.note_session("one", kept, dispatch_pb2.IdentityLedger(), at(seconds + 2))
        self.look(seconds + 2)
        for state in told._told.get(UID, {}).values():
            self.fleet.note_device("one", state)
        self.look(seconds + 3)


@pytest.mark.parametrize("fault", TOLD)
def test_what_the_gateway_judges_of_a_stream_is_the_reason(fault: AssetFault) -> None:
    world = World()
    world.flow(0)
    world.tell(100, broken(fault, "no sample for 75 s, 60 s are allowed"))

    told = world.look(100)
    assert (told["status"], told["reason"]) == ("False", fault)
    assert told["message"] == "no sample for 75 s, 60 s are allowed"
    assert told["lastTransitionTime"] == format_second(at(100))

    world.tell(131, FLOWS)
    assert world.look(131)["status"] == "True"


def test_an_agent_that_is_gone_for_a_moment_is_not_told() -> None:
    world = World()
    world.flow(0)
    world.close(100)
    for second in range(100, 160):
        assert world.look(second)["status"] == "True"
        assert world.again_us is not None
        assert at(160) <= world.again_us <= at(160.1)
    world.open(159)
    world.tell(159, FLOWS)
    world.look(159)

    assert world.changes == 1


def test_an_agent_that_stays_away_is_told_once_with_since_when_and_why() -> None:
    world = World()
    world.flow(0)
    world.close(100, "ConnectionLost")
    for second in (100, 130, 160, 161, 400, 5000):
        world.look(second)

    assert world.words == ("False", "AgentOffline")
    assert world.told["message"] == (
        f"its agent has no stream since {format_second(at(100))} (ConnectionLost); "
        "before that its data flowed"
    )
    assert world.told["lastTransitionTime"] == format_second(at(160))
    assert world.changes == 2


def test_what_was_said_last_stays_when_the_agent_goes_too() -> None:
    world = World()
    world.flow(0)
    world.tell(100, broken(AssetFault.DEVICE_SILENT, "no sample for 75 s"))
    world.look(100)
    world.close(200)
    world.look(260)

    assert world.words == ("False", "AgentOffline")
    assert world.told["message"].endswith("; before that DeviceSilent: no sample for 75 s")
    assert world.told["lastTransitionTime"] == format_second(at(100))


def test_the_limit_is_that_of_the_assets_interval() -> None:
    world = World(interval_seconds=100)
    world.flow(0)
    world.close(1000)
    assert world.look(1299)["status"] == "True"
    assert world.look(1300)["status"] == "False"


def test_data_that_flows_again_is_told_at_once() -> None:
    world = World()
    world.flow(0)
    world.close(100)
    world.look(160)
    world.open(161)
    world.look(161)
    world.tell(162, FLOWS)

    assert world.look(162)["status"] == "True"


def test_that_nothing_is_judged_yet_does_not_hold_up_what_is_then() -> None:
    world = World()
    world.open(0)
    world.tell(1, None)
    world.look(1)
    world.tell(2, FLOWS)
    assert world.look(2)["status"] == "True"
    world.open(10)
    world.tell(11, None)
    world.look(11)
    world.tell(12, broken(AssetFault.NO_SAMPLES))
    world.look(12)
    assert world.told["status"] == "True", "another judgement has its time"
    world.tell(13, FLOWS)
    world.look(13)

    assert world.fleet.session(UID, at(13)).path == PathView(fault=None, shown_us=at(2))


def spec(world: World, **fields: Any) -> None:
    world.asset = replace(world.asset, **fields)


def identity(world: World, **fields: Any) -> None:
    ledger = {**world.asset.identity, **fields}
    if "current" in fields and fields["current"] is None:
        del ledger["current"]
    world.asset = replace(world.asset, status={**world.asset.status, "identity": ledger})


def test_of_an_asset_without_a_stream_the_first_cause_is_told() -> None:
    world = World()
    world.flow(0)
    world.close(10)
    assert world.look(70)
    assert world.words == ("False", "AgentOffline")

    # From the last cause to the first, each beside those behind it.
    identity(world, current=None)
    assert world.look(80)["reason"] == "NotEnrolled"
    identity(world, current={**GOOD, "notAfter": format_second(at(50))})
    assert world.look(90)["reason"] == "CertificateExpired"
    assert format_second(at(50)) in world.told["message"]
    identity(world, quarantine={"reason": "CloneSuspected", "at": format_second(at(80))})
    assert world.look(100)["reason"] == "Quarantined"
    assert "CloneSuspected" in world.told["message"]
    spec(world, operating_state="OutOfService")
    assert world.look(110)["reason"] == "OutOfService"
    assert world.told["lastTransitionTime"] == format_second(at(70))


def test_the_operator_looks_again_when_a_certificate_expires() -> None:
    world = World()
    identity(world, current={**GOOD, "notAfter": format_second(at(1000))})
    world.close(10)
    world.look(70)
    assert world.words == ("False", "AgentOffline")
    assert world.again_us is not None
    world.look((world.again_us - at(0)) / SECOND_US)

    assert world.words == ("False", "CertificateExpired")
    assert condition(world.asset, "Enrolled")["reason"] == "CertificateExpired"


def test_a_new_asset_has_it_from_the_first_status_on() -> None:
    world = World()
    world.asset = replace(world.asset, status={})
    world.look(10)
    assert world.words == ("False", "NotEnrolled")
    identity(world, current=GOOD)
    world.look(12)
    assert world.words == ("False", "AgentOffline")
    assert world.told["message"] == "no agent of it has connected yet"
    world.open(14)
    world.tell(15, FLOWS)
    world.look(15)

    assert world.words == ("True", "Flowing")
    assert world.writes == 3, "each with what else was new"


def test_an_older_agent_or_gateway_says_nothing_and_that_is_told_after_the_limit() -> None:
    world = World()
    world.open(10)
    world.tell(11, None)
    assert world.look(11) == world.look(69.9) == {}
    assert world.again_us is not None
    world.look(70)

    assert world.words == ("Unknown", "NotTold")
    world.close(100)
    world.look(160)
    assert world.words == ("False", "AgentOffline")


def test_a_lost_replica_makes_it_unknown_in_the_patch_that_connected_is_in() -> None:
    world = World("one", "two")
    world.flow(0)
    world.fleet.lose_replica("one", at(100))
    for second in (100, 129):
        assert world.look(second)["status"] == "True"
    writes = world.writes
    world.look(130)
    assert world.words == ("Unknown", "ReplicaLost")
    assert condition(world.asset, "Connected")["reason"] == "ReplicaLost"

    world.fleet.add_replica("one", at(-100), 1, at(140))
    world.fleet.note_accepted("one", 1, at(140))
    world.open(0)
    world.tell(141, FLOWS)
    world.look(141)
    assert world.words == ("True", "Flowing")
    assert condition(world.asset, "Connected")["status"] == "True"
    assert world.writes == writes + 2
    assert at(130) == at(100) + LOST_AFTER_US


def test_where_both_change_they_are_in_one_patch() -> None:
    world = World()
    world.flow(0)
    world.close(100)  # while no operator was there
    world.look(1000)

    assert world.words == ("False", "AgentOffline")
    assert condition(world.asset, "Connected")["status"] == "False"
    assert world.writes == 2


def test_a_restarted_operator_writes_nothing_where_nothing_changed() -> None:
    def flowing(world: World) -> None:
        world.flow(0)

    def offline(world: World) -> None:
        world.flow(0)
        world.close(100)
        world.look(160)

    def silent(world: World) -> None:
        world.flow(0)
        world.tell(100, broken(AssetFault.DEVICE_SILENT, "no sample for 75 s"))
        world.look(100)
        # What a gateway says to a new operator, it says with newer figures.
        world.tell(100, broken(AssetFault.DEVICE_SILENT, "no sample for 5000 s"))

    def old(world: World) -> None:
        world.open(0)
        world.tell(1, None)
        world.look(61)

    for begin in (flowing, offline, silent, old):
        world = World()
        begin(world)
        assert world.told
        writes, told = world.writes, world.told
        world.restart(5000)
        world.look(5000 + 3600)
        assert (world.writes, world.told) == (writes, told), begin.__name__


def test_an_agent_that_left_while_no_operator_was_there_is_counted_from_then() -> None:
    world = World()
    world.flow(0)
    world.close(4990)
    world.restart(5000)
    assert world.told["status"] == "True"
    assert world.again_us is not None
    assert world.again_us // SECOND_US == at(4990 + 60) // SECOND_US
    world.look(5050)

    assert f"since {format_second(at(4990))}" in world.told["message"]


def test_a_gateway_that_lost_its_memory_does_not_make_it_begin_anew() -> None:
    world = World()
    world.flow(0)
    world.close(100)
    world.look(110)  # Connected turns False
    world.fleet.add_replica("one", at(111), 1, at(111))  # another disk: no word of the asset
    world.fleet.note_accepted("one", 1, at(111))
    world.look(111 + SESSIONS_WITHIN_US / SECOND_US)
    assert world.told["status"] == "True"

    world.look(170)
    assert world.words == ("False", "AgentOffline")


def test_it_never_touches_what_a_sync_waits_for() -> None:
    world = World()
    world.flow(0)
    statuses = [world.asset.status]
    for fault in TOLD:
        second = 200 * len(statuses)
        world.tell(second, broken(fault))
        world.look(second)
        world.look(second + 61)
        assert world.words == ("False", fault)
        statuses.append(world.asset.status)
    world.close(5000)
    world.look(5100)
    statuses.append(world.asset.status)
    world.fleet.lose_replica("one", at(5200))
    world.look(5300)
    statuses.append(world.asset.status)

    kinds = ("Ready", "Reconciling", "Stalled")
    held = [{each["type"]: each for each in status["conditions"]} for status in statuses]
    assert len({str([each[kind] for kind in kinds]) for each in held}) == 1
    assert len({(each[CONDITION]["status"], each[CONDITION]["reason"]) for each in held}) >= 8
    assert set(computed(*[of("DERAsset", dict(each)) for each in statuses])) == {"Current"}


# What a gateway says is bounded


def test_of_what_a_gateway_says_so_much_is_shown_and_no_more() -> None:
    world = World()
    world.open(0)
    world.tell(1, broken(AssetFault.NO_SAMPLES, "\x1b[2J" + "ü" * 10_000))
    world.look(1)

    message = world.told["message"]
    assert len(message.encode()) <= PATH_WORDS_BYTES
    assert message.isprintable()


@pytest.mark.parametrize(
    "path",
    [
        control_pb2.LinkState(link="Device", reason="Newer"),
        control_pb2.LinkState(link="Device", reason="NoSamples"),
        control_pb2.LinkState(link="Device"),
        control_pb2.LinkState(link="Stream", reason="AgentOffline"),
        control_pb2.LinkState(link="Database", reason="DatabaseFull"),
    ],
)
def test_what_a_gateway_cannot_say_counts_as_not_told(path: control_pb2.LinkState) -> None:
    world = World()
    world.open(0)
    world.tell(1, path)
    world.look(61)

    assert world.words == ("Unknown", "NotTold")


# How often it changes


def test_a_link_that_flaps_faster_than_the_limit_costs_no_write_of_it() -> None:
    world = World()
    world.flow(0)
    for second in range(10, 3600, 20):
        world.close(second)
        world.look(second)
        world.open(second + 10)
        world.tell(second + 11, FLOWS)
        world.look(second + 11)

    assert world.changes == 1


def test_streams_on_which_no_data_comes_do_not_look_like_data() -> None:
    world = World()
    world.flow(0)
    for second in range(100, 300, 10):
        world.close(second)
        world.look(second)
        world.open(second + 5)
        world.look(second + 5)

    assert world.told["status"] != "True"


def test_a_link_that_flaps_slower_costs_two_changes_each_time() -> None:
    world = World()
    world.flow(0)
    for start in range(100, 3700, 90):
        world.close(start)
        for second in range(start, start + 80, 5):
            world.look(second)
        world.open(start + 80)
        world.tell(start + 81, FLOWS)
        world.look(start + 81)

    assert world.changes == 1 + 2 * 40


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_gateway_says_it_changes_twice_a_minute_at_most(seed: int) -> None:
    world, draw = World(), random.Random(seed)
    paths = [None, FLOWS, *(broken(fault) for fault in TOLD)]
    for second in range(1, 3601):
        for _ in range(3):
            match draw.randrange(4):
                case 0:
                    world.close(draw.choice((0, second - 1000, second, 10**9)))
                case 1:
                    world.open(draw.choice((0, second - 1000, second, 10**9)))
                case _:
                    facts = draw.choice((None, WELL, BAD))
                    world.tell(draw.choice((second, 10**9)), draw.choice(paths), facts)
            world.look(second)

    assert world.changes <= 1 + 2 * 3600 // 60


def test_of_other_reasons_none_is_told_before_it_has_lasted() -> None:
    world = World()
    world.open(0)
    world.tell(0, broken(AssetFault.DEVICE_SILENT))
    world.look(0)
    every = DEVICE_EVERY_US // SECOND_US
    for number in range(1, 100):
        fault = AssetFault.NO_SAMPLES if number % 2 else AssetFault.DEVICE_SILENT
        world.tell(number * every, broken(fault))
        world.look(number * every)
    assert world.changes == 1

    world.look(100 * every + 60)
    assert world.words == ("False", "NoSamples")
    assert world.changes == 2


def test_a_clock_that_is_set_back_keeps_no_break_from_being_told() -> None:
    world = World()
    world.flow(100_000)
    later: Asset = world.asset
    offline = SessionView(link=Connectivity.DISCONNECTED, since_us=at(100))
    (told,), _ = data_flowing(later, ENROLLED, offline, at(200))

    assert told.status == "False"
    path = PathView(fault=AssetFault.NO_SAMPLES, message="m", shown_us=at(90_000))
    connected = SessionView(link=Connectivity.CONNECTED, since_us=at(0), path=path)
    world.tell(200_000, broken(AssetFault.DEVICE_SILENT))
    world.look(200_000)
    (told,), _ = data_flowing(world.asset, ENROLLED, connected, at(200))
    assert told.reason == "NoSamples"


def test_while_nobody_was_asked_what_is_stored_stays() -> None:
    unheard = SessionView(link=Connectivity.UNHEARD)
    world = World()
    assert data_flowing(world.asset, ENROLLED, unheard, at(1)) == ([], None)
    world.flow(0)
    (kept,), again_us = data_flowing(world.asset, ENROLLED, unheard, at(1000))

    assert (kept.status, again_us) == ("True", None)


def test_a_condition_that_is_absent_waits_for_a_break_to_last() -> None:
    known = asset(status={"identity": ENROLLED, "lastConnectedTime": format_second(at(0))})
    offline = SessionView(link=Connectivity.DISCONNECTED, since_us=at(100))

    assert data_flowing(known, ENROLLED, offline, at(159)) == ([], at(160))
    (told,), _ = data_flowing(known, ENROLLED, offline, at(160))
    assert told.reason == "AgentOffline"
    path = PathView(fault=AssetFault.NO_SAMPLES, message="m", shown_us=at(100))
    connected = SessionView(link=Connectivity.CONNECTED, since_us=at(0), path=path)
    (told,), _ = data_flowing(known, ENROLLED, connected, at(100))
    assert parse_instant(format_second(at(100))) == at(100)
    assert told.reason == "NoSamples"
