"""Which link of one asset's data path is said to be broken, by what its agent says."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derops.data_path import AssetFault
from derops.devices import bounded, bounded_telemetry
from derops.wire.v1 import agent_pb2
from derops_headend.fleet.asset_path import (
    HOLDS,
    MAX_EVIDENCE_BYTES,
    Evidence,
    Refusal,
    is_clock_wrong,
    judge,
    plausible,
    settling_us,
    write_state,
)

S = 1_000_000
NOW = 1_800_000_000 * S
LIMIT = 60


def ago(seconds: float) -> int:
    return NOW - round(seconds * S)


def device(**facts: Any) -> agent_pb2.DeviceFacts:
    return agent_pb2.DeviceFacts(**facts)


def telemetry(**facts: Any) -> agent_pb2.TelemetryFacts:
    return agent_pb2.TelemetryFacts(**{"sampled_us": ago(5)} | facts)


def evidence(**facts: Any) -> Evidence:
    """Return what is known of an asset that has been connected for long, and of which all holds."""
    defaults: dict[str, Any] = {
        "device": device(),
        "telemetry": telemetry(),
        "sent_us": NOW,
        "clock_behind_us": 0,
        "refusal": None,
        "limit_seconds": LIMIT,
        "may_accuse": True,
        "free_us": 3600 * S,
        "is_first": False,
    }
    return Evidence(**defaults | facts)


SILENT = device(silent_since_us=ago(95), silence="no answer within 2 s")
STALE = telemetry(sampled_us=ago(95))
FULL = telemetry(problem="database or disk is full", problem_since_us=ago(95))
BEHIND = telemetry(waiting_samples=12, oldest_waiting_us=ago(95))
REFUSED = Refusal(lasts_us=95 * S, why="0 samples; 1 to 1000 are allowed")


@pytest.mark.parametrize(
    ("facts", "reason", "message"),
    [
        pytest.param(
            {"device": SILENT},
            AssetFault.DEVICE_SILENT,
            "no sample of the device for 95 s, 60 s are allowed: no answer within 2 s",
            id="silent device",
        ),
        pytest.param(
            {"device": device(silent_since_us=ago(40)), "telemetry": STALE},
            AssetFault.DEVICE_SILENT,
            "no sample of the device for 95 s, 60 s are allowed",
            id="silent for less than its samples are missing",
        ),
        pytest.param(
            {"device": device(silent_since_us=ago(40)), "telemetry": telemetry(sampled_us=0)},
            AssetFault.DEVICE_SILENT,
            "no sample of the device since its agent started, and no answer for 40 s",
            id="silent from the agent's start on",
        ),
        pytest.param(
            {"telemetry": STALE},
            AssetFault.NO_SAMPLES,
            "the newest sample in the outbox is 95 s old, 60 s are allowed",
            id="no samples",
        ),
        pytest.param(
            {"telemetry": telemetry(sampled_us=0)},
            AssetFault.NO_SAMPLES,
            "the outbox has taken no sample since the agent started, the newest may be 60 s old",
            id="no sample at all",
        ),
        pytest.param(
            {"clock_behind_us": 3600 * S},
            AssetFault.CLOCK_WRONG,
            "the agent's clock is 3600 s behind the gateway's, less than 60 s are allowed",
            id="clock behind",
        ),
        pytest.param(
            {"clock_behind_us": -60 * S},
            AssetFault.CLOCK_WRONG,
            "the agent's clock is 60 s ahead of the gateway's, less than 60 s are allowed",
            id="clock ahead",
        ),
        pytest.param(
            {"telemetry": FULL},
            AssetFault.OUTBOX_FAILING,
            "the agent's disk has taken no sample for 95 s, 60 s are allowed: "
            "database or disk is full",
            id="disk",
        ),
        pytest.param(
            {"telemetry": BEHIND},
            AssetFault.OUTBOX_BEHIND,
            "12 samples wait at the agent, the oldest for 95 s, 60 s are allowed",
            id="backlog",
        ),
        pytest.param(
            {"refusal": REFUSED},
            AssetFault.TELEMETRY_REFUSED,
            "each batch for 95 s was refused, 60 s are allowed: 0 samples; 1 to 1000 are allowed",
            id="refused",
        ),
    ],
)
def test_a_broken_link_is_named_with_its_evidence(
    facts: dict[str, Any], reason: AssetFault, message: str
) -> None:
    verdict = judge(evidence(**facts))

    assert verdict is not None
    assert (verdict.reason, verdict.message) == (reason, message)


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({}, id="all is well"),
        pytest.param({"device": device(silent_since_us=ago(60))}, id="silent within the limit"),
        pytest.param({"telemetry": telemetry(sampled_us=ago(60))}, id="a sample at the limit"),
        pytest.param({"telemetry": telemetry(sampled_us=ago(-9))}, id="a sample from the future"),
        pytest.param({"clock_behind_us": 60 * S - 1}, id="a clock within the limit"),
        pytest.param(
            {"telemetry": telemetry(problem="full", problem_since_us=ago(60))},
            id="a disk that fails since the limit",
        ),
        pytest.param(
            {"telemetry": telemetry(waiting_samples=9, oldest_waiting_us=ago(60))},
            id="a backlog within the limit",
        ),
        pytest.param({"telemetry": telemetry(oldest_waiting_us=ago(95))}, id="nothing waits"),
        pytest.param({"telemetry": telemetry(waiting_samples=9)}, id="waiting since no time"),
        pytest.param({"refusal": Refusal(lasts_us=60 * S, why="")}, id="refused within the limit"),
        pytest.param(
            {"telemetry": telemetry(sampled_us=ago(170)), "limit_seconds": 180},
            id="an asset that is sampled once a minute",
        ),
    ],
)
def test_what_is_within_the_limit_holds(facts: dict[str, Any]) -> None:
    assert judge(evidence(**facts)) == HOLDS
    assert judge(evidence(**facts, may_accuse=False)) == HOLDS, "and is said so at once"


def test_of_several_the_first_on_the_way_is_named() -> None:
    broken: dict[str, Any] = {
        "device": SILENT,
        "telemetry": telemetry(
            sampled_us=ago(95),
            waiting_samples=12,
            oldest_waiting_us=ago(95),
            problem="full",
            problem_since_us=ago(95),
        ),
        "clock_behind_us": 3600 * S,
        "refusal": REFUSED,
    }
    named: list[AssetFault | None] = []
    mended: dict[str, Any] = {}
    for mend in (
        {"device": device()},
        {"telemetry": FULL},
        {"clock_behind_us": 0},
        {"telemetry": BEHIND},
        {"telemetry": telemetry()},
        {"refusal": None},
    ):
        verdict = judge(evidence(**broken | mended))
        assert verdict is not None
        named.append(verdict.reason)
        mended |= mend

    assert named == [
        AssetFault.DEVICE_SILENT,
        AssetFault.NO_SAMPLES,
        AssetFault.CLOCK_WRONG,
        AssetFault.OUTBOX_FAILING,
        AssetFault.OUTBOX_BEHIND,
        AssetFault.TELEMETRY_REFUSED,
    ]
    assert judge(evidence(**broken | mended)) == HOLDS


def test_a_short_silence_is_not_taken_for_a_sampling_that_stopped() -> None:
    # Sampled every 20 s: the sample before the silence is 75 s old as the device is silent for 55.
    silent = evidence(
        device=device(silent_since_us=ago(55)), telemetry=telemetry(sampled_us=ago(75))
    )

    verdict = judge(silent)

    assert verdict is not None
    assert verdict.reason is AssetFault.DEVICE_SILENT


def test_an_agent_that_catches_up_is_accused_of_nothing_but_a_silence_that_began_before() -> None:
    for facts in ({"telemetry": BEHIND}, {"telemetry": STALE}, {"telemetry": FULL}):
        assert judge(evidence(**facts, may_accuse=False, is_first=True)) is None

    silent = judge(evidence(device=SILENT, may_accuse=False, is_first=True))
    assert silent is not None
    assert silent.reason is AssetFault.DEVICE_SILENT
    assert judge(evidence(device=SILENT, may_accuse=False)) is None


def test_a_backlog_is_no_asset_s_while_the_gateway_does_not_take_all() -> None:
    assert judge(evidence(telemetry=BEHIND, free_us=0)) == HOLDS
    assert judge(evidence(telemetry=BEHIND, free_us=LIMIT * S - 1)) is None, "it catches up"
    assert judge(evidence(telemetry=BEHIND, free_us=LIMIT * S)) != HOLDS


def test_who_is_sampled_once_an_hour_is_judged_within_one_stream() -> None:
    assert settling_us(3 * 3600) == 600 * S
    assert settling_us(LIMIT) == LIMIT * S


def test_the_operator_is_told_link_and_reason_and_nothing_of_what_holds() -> None:
    verdict = judge(evidence(telemetry=STALE))
    assert verdict is not None

    state = write_state(verdict, 7)
    assert (state.link, state.reason, state.since_us) == ("Sampling", "NoSamples", 7)
    assert state.message == verdict.message
    held = write_state(HOLDS, 8)
    assert (held.link, held.reason, held.message, held.since_us) == ("", "", "", 8)


INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)
SAID = st.text(st.characters(exclude_characters="-"), max_size=400)
"""Words of others may have a dash; ages of ours may not."""


@given(
    silent_since_us=INT64,
    silence=SAID,
    sampled_us=INT64,
    waiting=UINT64,
    oldest_us=INT64,
    problem=SAID,
    problem_us=INT64,
    sent_us=INT64,
    received_us=st.integers(0, 2**52),
    refused_us=st.none() | st.integers(0, 2**62),
    limit_seconds=st.integers(60, 10800),
    may_accuse=st.booleans(),
    is_first=st.booleans(),
)
def test_whatever_is_said_there_is_one_verdict_in_bounded_words(
    silent_since_us: int,
    silence: str,
    sampled_us: int,
    waiting: int,
    oldest_us: int,
    problem: str,
    problem_us: int,
    sent_us: int,
    received_us: int,
    refused_us: int | None,
    limit_seconds: int,
    may_accuse: bool,
    is_first: bool,
) -> None:
    told = evidence(
        device=bounded(device(silent_since_us=silent_since_us, silence=silence)),
        telemetry=bounded_telemetry(
            agent_pb2.TelemetryFacts(
                sampled_us=sampled_us,
                waiting_samples=waiting,
                oldest_waiting_us=oldest_us,
                problem=problem,
                problem_since_us=problem_us,
            )
        ),
        sent_us=plausible(sent_us),
        clock_behind_us=received_us - plausible(sent_us),
        refusal=None if refused_us is None else Refusal(lasts_us=refused_us, why=problem),
        limit_seconds=limit_seconds,
        may_accuse=may_accuse,
        is_first=is_first,
    )

    verdict = judge(told)

    assert verdict == judge(told)
    if verdict is None:
        assert not may_accuse
        return
    assert verdict.message.isprintable()
    assert len(verdict.message.encode()) <= MAX_EVIDENCE_BYTES
    assert "-" not in verdict.message.partition(" allowed")[0], "no age is below 0"
    assert (verdict.reason is None) == (verdict.message == "")
    if verdict.reason is None:
        assert not is_clock_wrong(told.clock_behind_us)
    elif not may_accuse:
        assert (verdict.reason, is_first) == (AssetFault.DEVICE_SILENT, True)


@given(st.integers(-(2**63), 2**63 - 1))
def test_nobody_gets_out_of_a_verdict_by_waiting_longer(extra_us: int) -> None:
    """What is broken stays broken as it lasts; only the words change."""
    first = judge(evidence(telemetry=STALE))
    later = judge(replace(evidence(telemetry=STALE), sent_us=plausible(NOW + abs(extra_us))))

    assert first is not None
    assert later is not None
    assert first.reason is later.reason
