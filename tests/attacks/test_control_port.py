"""Attackers at the control port: a certificate of the control CA, an old key, a wrong clock.

Each says what must be counted and who must be told. The gateway is a real one, over real mTLS.
"""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs
from tests.agent.fakes import T0, Agent, asset, order
from tests.headend.gateway.conftest import _no_pace, leaf, operator, rig
from tests.headend.gateway.counting import counted, refused_streams
from tests.headend.gateway.rig import Operator, Rig, now_us
from tests.pki import Leaf
from tests.waiting import until

from derops.wire.v1 import agent_pb2, control_pb2
from derops_agent.asset.inbox import Snapshot
from derops_headend.fleet import desired
from derops_headend.fleet.desired import Revision
from derops_headend.gateway.desired_store import DesiredStore

__all__ = ["_no_pace", "leaf", "operator", "rig"]

TEN_YEARS_SECONDS = 10 * 365 * 86400
MINUTE_US = 60_000_000
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def clock_ahead() -> float:
    return counted("derops_gateway_operator_clock_ahead_seconds")


def fingerprint(leaf: Leaf) -> str:
    key = leaf.certificate.public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


def told(rig: Rig) -> str:
    """Return what the gateway's /readyz says."""
    return rig.readiness.report()[1]


async def ended_with(peer: Operator, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=reason):
        await peer.accepted(2**62)


async def sweep(rig: Rig) -> None:
    """Have the gateway do what it does once a second."""
    assert rig.gateway is not None
    await rig.gateway._control.end_overdue()


class Clock:
    """The gateway's clock."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def __call__(self) -> int:
        return now_us() + self.ahead_us


@pytest.fixture
async def clock(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of a gateway that was started again."""
    clock = Clock()
    monkeypatch.setattr("derops_headend.gateway.server._now_us", clock)
    await rig.stop()
    await rig.start()
    return clock


async def begin(peer: Operator, start_ms: int, era: int = 0) -> None:
    begin = control_pb2.SnapshotBegin(operator_start_ms=start_ms, era=era)
    await peer.say(snapshot_begin=begin)


# Somebody with a certificate of the control CA


async def test_a_certificate_of_the_control_ca_is_not_enough(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    """C1: whoever gets a certificate with the operator's name issued connects beside the operator.

    `NotTheOperatorsKey` is counted; the log and /readyz have both fingerprints; the live operator
    goes on and the device hears nothing.
    """
    before, thief = refused_streams("NotTheOperatorsKey"), rig.make_operator()
    agent = rig.agent(leaf)
    await agent.connect()

    with capture_logs() as logs:
        code, details = await rig.operator(thief).refusal()

    assert (code, details.partition(": ")[0]) == (UNAVAILABLE, "NotTheOperatorsKey")
    assert refused_streams("NotTheOperatorsKey") == before + 1
    (line,) = [line for line in logs if line["event"] == "operator.refused"]
    for shown in (fingerprint(thief), fingerprint(rig.operator_leaf)):
        assert shown in line["why"]
        assert shown in told(rig)
    assert rig.readiness.report()[0]
    await operator.accepted(await operator.say(dispatch=rig.dispatch("genuine")))
    assert (await agent.read_until("dispatch")).uid == "genuine"


async def test_a_stranger_while_the_operator_is_away_is_told_until_it_is_back(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    """C2: the same while no operator is connected; /readyz tells it until the operator is back."""
    await operator.close()

    await rig.operator(rig.make_operator()).refusal()

    assert "degraded operator key" in told(rig)
    await rig.agent(leaf).connect()  # served by what was stored
    await rig.operator().snapshot([rig.asset("battery", leaf)], start_ms=2000)
    assert "operator key" not in told(rig)


async def test_a_stranger_beside_the_operator_is_told_for_ten_minutes(
    rig: Rig, clock: Clock
) -> None:
    """C3: /readyz tells of a refused stranger for ten minutes though the operator is connected."""
    await rig.operator().snapshot([])
    await rig.operator(rig.make_operator()).refusal()

    clock.ahead_us = 9 * MINUTE_US
    await sweep(rig)
    assert "degraded operator key" in told(rig)

    clock.ahead_us = 11 * MINUTE_US
    await until(lambda: "operator key" not in told(rig))


async def test_without_the_operators_certificate_nobody_is_the_operator(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    """C4: the mount is away: no operator is admitted, /readyz says so, agents are served."""
    await rig.stop()
    rig.operator_file.unlink()
    await rig.start()

    code, details = await rig.operator(rig.make_operator()).refusal()
    genuine, _ = await rig.operator().refusal()

    assert (code, genuine) == (UNAVAILABLE, UNAVAILABLE)
    assert str(rig.operator_file) in details
    assert "degraded operator certificate" in told(rig)
    await rig.agent(leaf).connect()

    rig.operator_file.write_bytes(rig.operator_leaf.pem)
    await rig.operator().snapshot([rig.asset("battery", leaf)])
    assert "operator certificate" not in told(rig)


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAA\n"])
async def test_a_file_without_a_certificate_admits_nobody_and_ends_nothing(
    rig: Rig, operator: Operator, content: bytes
) -> None:
    """C5: the file holds rubbish: who is connected stays, nobody else is admitted."""
    rig.operator_file.write_bytes(content)
    await until(lambda: "degraded operator certificate" in told(rig))

    code, details = await rig.operator().refusal()

    assert (code, details.partition(": ")[0]) == (UNAVAILABLE, "NotTheOperatorsKey")
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))


# A key of the operator that was stolen in the past


async def test_the_key_before_is_good_for_ten_minutes_also_over_a_restart(
    rig: Rig, clock: Clock
) -> None:
    """C6: a thief has the operator's key from before a renewal: ten minutes later it is nothing."""
    stolen = rig.operator_leaf
    await rig.operator(stolen).snapshot([])
    rig.renew_operator()

    clock.ahead_us = 4 * MINUTE_US
    await rig.operator(stolen).snapshot([])  # the operator's own mount may lag
    await rig.stop()
    await rig.start()
    clock.ahead_us = 8 * MINUTE_US
    await rig.operator(stolen).snapshot([])

    clock.ahead_us = 15 * MINUTE_US
    code, details = await rig.operator(stolen).refusal()
    assert (code, details.partition(": ")[0]) == (UNAVAILABLE, "NotTheOperatorsKey")
    await rig.stop()
    await rig.start()
    await rig.operator(stolen).refusal()
    clock.ahead_us = -20 * MINUTE_US  # and a clock that is set back changes nothing
    _, details = await rig.operator(stolen).refusal()
    assert details.partition(": ")[0] == "NotTheOperatorsKey"


async def test_a_stream_with_the_key_before_ends_with_its_time(rig: Rig, clock: Clock) -> None:
    """C7: the thief keeps a stream open over the renewal: the sweep ends it after ten minutes."""
    thief = rig.operator()
    await thief.snapshot([])
    rig.renew_operator()
    await sweep(rig)  # finds the new key
    await thief.accepted(await thief.say(dispatch=rig.dispatch("d1")))

    clock.ahead_us = 11 * MINUTE_US

    await ended_with(thief, "NotTheOperatorsKey")


async def test_a_stream_ends_when_the_operators_certificate_does(rig: Rig) -> None:
    """C8: an operator whose certificate has expired is not heard on an old connection."""
    rig.renew_operator(ends=timedelta(seconds=3))
    live = rig.operator()
    await live.snapshot([])

    await ended_with(live, "CertificateExpired")


async def test_a_second_renewal_shuts_out_a_stolen_key_at_once(rig: Rig) -> None:
    """C9: only one key before is good: to renew twice is the way to be rid of a thief now."""
    stolen = rig.operator_leaf
    await rig.operator(stolen).snapshot([])
    for _ in range(2):
        rig.renew_operator()
        await rig.operator().snapshot([])

    code, _ = await rig.operator(stolen).refusal()

    assert code is UNAVAILABLE


# The operator's own key with a clock that is wrong, or wronged


@pytest.mark.parametrize("where", ["start", "era"])
async def test_no_desired_state_from_the_future_is_stored(
    rig: Rig, leaf: Leaf, operator: Operator, where: str
) -> None:
    """C10: desired state that begins ten years ahead would lock out everybody until then.

    `OperatorClockAhead` is counted; the operator is told the seconds; the gateway's /readyz and the
    metric have them until a good state comes; what was served is served.
    """
    before, now_seconds = refused_streams("OperatorClockAhead"), now_us() // 10**6
    later = now_seconds + TEN_YEARS_SECONDS
    fast = rig.operator()
    await begin(fast, **_origin(where, later))

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await fast.accepted(1)

    assert f"OperatorClockAhead: era {later if where == 'era' else 0} " in str(refusal.value)
    assert " s ahead of the gateway's clock" in str(refusal.value)
    assert refused_streams("OperatorClockAhead") == before + 1
    assert "degraded operator clock" in told(rig)
    assert abs(clock_ahead() - TEN_YEARS_SECONDS) < 60
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))  # not superseded
    messages = await rig.agent(leaf).connect()
    assert messages[1].sync_begin.revision.operator_start_ms == 1000

    await rig.operator().snapshot([], start_ms=now_seconds * 1000)
    assert "operator clock" not in told(rig)
    assert clock_ahead() == 0


def _origin(where: str, seconds: int) -> dict[str, Any]:
    return {"start_ms": 5, "era": seconds} if where == "era" else {"start_ms": seconds * 1000}


async def test_ten_minutes_are_no_attack_and_eleven_are(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    """C11: what an operator's clock may differ by is taken, a minute more is not."""
    now_ms = now_us() // 1000

    eleven = rig.operator()
    await begin(eleven, now_ms + 11 * 60_000)
    await ended_with(eleven, "OperatorClockAhead")
    await rig.operator().snapshot([], start_ms=now_ms + 9 * 60_000)


async def test_a_stored_state_from_the_future_is_told_and_ended_by_an_era(
    rig: Rig, leaf: Leaf
) -> None:
    """C12: an earlier version took such a state: a higher era is the way out.

    /readyz tells it from the start on.
    """
    await rig.stop()
    await _store(rig, leaf, now_us() // 1000 + TEN_YEARS_SECONDS * 1000)
    await rig.start()
    assert "degraded operator clock" in told(rig)
    await rig.agent(leaf).connect()  # it serves what it has

    now_ms = now_us() // 1000
    plain = rig.operator()
    await begin(plain, now_ms)
    await ended_with(plain, "StaleOperator")
    await rig.operator().snapshot([rig.asset("battery", leaf)], start_ms=now_ms, era=now_ms // 1000)

    assert "operator clock" not in told(rig)
    await rig.stop()
    await rig.start()
    messages = await rig.agent(leaf).connect(epoch=2)
    revision = messages[1].sync_begin.revision
    assert (revision.era, revision.operator_start_ms) == (now_ms // 1000, now_ms)


async def _store(rig: Rig, leaf: Leaf, start_ms: int) -> None:
    store = DesiredStore(rig.directory / "desired.db", now_us())
    revision = Revision(operator_start_ms=start_ms, version=1)
    assets = (rig.asset("battery", leaf),)
    await store.replace(desired.Snapshot(revision=revision, assets=assets, dispatches=()))
    store.close()


async def test_a_predecessor_does_not_even_take_the_stream(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    """C13: an operator that still runs on a partitioned node connects: the live one goes on."""
    before = refused_streams("StaleOperator")
    zombie = rig.operator()
    await begin(zombie, 999)

    await ended_with(zombie, "StaleOperator")

    assert refused_streams("StaleOperator") == before + 1
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))


async def test_no_agent_keeps_what_a_wrong_clock_or_a_hostile_gateway_hands_on(
    tmp_path: Path,
) -> None:
    """C14: an earlier or hostile gateway hands on a state from ten years ahead.

    The agent obeys it, as an agent with a slow clock must, and keeps the newest that it had; it is
    counted once for each start.
    """
    agent = await Agent(tmp_path).start()
    genuine = agent.ledger.revision
    before = counted("derops_agent_revisions_ahead_total")
    poison = agent_pb2.Revision(operator_start_ms=T0 // 1000 + TEN_YEARS_SECONDS * 1000, counter=1)

    for _ in range(3):
        snapshot = Snapshot(revision=poison, asset=asset(generation=2), dispatches=[order("d1")])
        agent.controller.take(snapshot)
        await agent.controller.turn()

    assert agent.controller.journal["d1"].phase == "Acked"
    assert agent.controller.revisions.heard == agent.ledger.revision == genuine
    assert counted("derops_agent_revisions_ahead_total") == before + 1
    await agent.restart()
    assert agent.controller.revisions.heard == genuine
    agent.ledger.close()


@pytest.mark.parametrize(
    "numbers",
    [
        {"start_ms": 2**64 - 1},
        {"start_ms": 2**63},
        {"start_ms": 5, "era": 2**64 - 1},
        {"start_ms": 2**64 - 1, "era": 2**64 - 1},
    ],
)
async def test_numbers_that_no_disk_can_hold_are_refused_like_others(
    rig: Rig, leaf: Leaf, operator: Operator, numbers: dict[str, int]
) -> None:
    """C15: start and era at the end of what the wire can carry: refused, and nothing stops."""
    odd = rig.operator()
    await begin(odd, **numbers)

    await ended_with(odd, "OperatorClockAhead")
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))
    assert rig.gateway is not None
    assert rig.gateway.alive()
