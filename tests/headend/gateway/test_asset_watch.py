"""When what an agent says of its telemetry is news, whatever it says and in whatever order."""

from hypothesis import given
from hypothesis import strategies as st

from derops.data_path import stale_after_seconds
from derops.wire.v1 import agent_pb2
from derops_headend.fleet.asset_path import MOST_SETTLING_SECONDS, Refusal
from derops_headend.gateway.asset_watch import LOOK_EVERY_US, AssetWatch, Surroundings

S = 1_000_000
WALL = 1_800_000_000 * S
OPENED = 1_000 * S

SAYINGS = st.fixed_dictionaries(
    {
        "after_seconds": st.sampled_from([0, 1, 5, 10, 59, 60, 61, 600, 4000]),
        "silent_seconds": st.sampled_from([0, 30, 95, 5000]),
        "sampled_seconds": st.sampled_from([-9, 2, 95, 5000, 10**10]),
        "slow_seconds": st.sampled_from([0, 0, 0, -3600, 3600]),
        "failing_seconds": st.sampled_from([0, 30, 95, 5000]),
        "waiting_seconds": st.sampled_from([0, 30, 95, 5000]),
        "refused_seconds": st.sampled_from([0, 30, 95, 5000]),
        "free_seconds": st.sampled_from([0, 30, 5000]),
        "interval_seconds": st.sampled_from([10, 10, 10, 900]),
    }
)


def heartbeat(saying: dict[str, int], wall_us: int) -> agent_pb2.Heartbeat:
    sent_us = wall_us - saying["slow_seconds"] * S

    def ago(name: str) -> int:
        return sent_us - saying[name] * S if saying[name] else 0

    return agent_pb2.Heartbeat(
        agent_sent_us=sent_us,
        device=agent_pb2.DeviceFacts(silent_since_us=ago("silent_seconds")),
        telemetry=agent_pb2.TelemetryFacts(
            sampled_us=max(-(2**63), sent_us - saying["sampled_seconds"] * S),
            problem="full" if saying["failing_seconds"] else "",
            problem_since_us=ago("failing_seconds"),
            waiting_samples=9 if saying["waiting_seconds"] else 0,
            oldest_waiting_us=ago("waiting_seconds"),
        ),
    )


@given(st.lists(SAYINGS, min_size=1, max_size=40))
def test_no_link_is_accused_soon_after_what_was_told_before(sayings: list[dict[str, int]]) -> None:
    watch, now_us = AssetWatch(OPENED), OPENED
    told: list[tuple[str, int]] = []
    looked_us = 0
    for saying in sayings:
        now_us += saying["after_seconds"] * S
        wall_us = WALL + now_us
        around = Surroundings(
            received_us=wall_us,
            at_us=wall_us,
            monotonic_us=now_us,
            interval_seconds=saying["interval_seconds"],
            refusal=Refusal(lasts_us=saying["refused_seconds"] * S, why="rule")
            if saying["refused_seconds"]
            else None,
            free_us=saying["free_seconds"] * S,
        )
        assert watch.is_due(now_us) == (now_us >= looked_us + LOOK_EVERY_US or not looked_us)
        if not watch.is_due(now_us):
            continue
        looked_us = now_us
        before = watch.state_of("uid")
        is_news = watch.take(heartbeat(saying, wall_us), around)
        after = watch.state_of("uid")
        assert after is not None
        if not is_news:
            assert after == before
            continue
        was_judged = before is not None and before.HasField("path")
        if not after.HasField("path"):
            assert not was_judged, "what was judged stays judged"
            continue
        if was_judged and before is not None and before.path.reason == after.path.reason:
            assert before.path == after.path, "the same reason with another text is no news"
            continue
        assert after.path.since_us == wall_us
        settling_us = S * min(
            stale_after_seconds(saying["interval_seconds"]), MOST_SETTLING_SECONDS
        )
        if after.path.reason and (len(told) > 1 or (told and told[0][0])):
            assert now_us - told[-1][1] >= min(60 * S, settling_us)
        elif after.path.reason not in ("", "DeviceSilent"):
            assert now_us - OPENED >= 60 * S
        told.append((after.path.reason, now_us))
