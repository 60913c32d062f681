"""What an agent says of its device and of its telemetry, held to bounds. Pure.

The agent keeps to them, and nobody behind it relies on that.
"""

from derops.wire.v1 import agent_pb2

MAX_BAD_POINTS = 8
"""The most points that are named; beyond, only their number is told."""

MAX_DEVICE_BYTES = 4 * 1024
"""The most that the facts of one device take, encoded."""

_MAX_WORD_BYTES = 64
_MAX_PROBLEM_BYTES = 200
_MAX_SENTENCE_BYTES = 300
_MAX_COUNT = 2**31
_MAX_TIME_US = 4_102_444_800_000_000  # the year 2100


def bounded(facts: agent_pb2.DeviceFacts) -> agent_pb2.DeviceFacts:
    """Return facts with no more points, longer texts or later times than there may be.

    What does not print (a line feed, a control character of a terminal) becomes a question mark.
    """
    named = facts.bad_points[:MAX_BAD_POINTS]
    return agent_pb2.DeviceFacts(
        bad_points=[
            agent_pb2.BadPoint(
                name=plain(point.name, _MAX_WORD_BYTES),
                raw=plain(point.raw, _MAX_WORD_BYTES),
                problem=plain(point.problem, _MAX_PROBLEM_BYTES),
                since_us=_instant(point.since_us),
                samples=min(point.samples, _MAX_COUNT),
            )
            for point in named
        ],
        more_bad_points=min(facts.more_bad_points + len(facts.bad_points) - len(named), _MAX_COUNT),
        silent_since_us=_instant(facts.silent_since_us),
        silence=plain(facts.silence, _MAX_SENTENCE_BYTES),
        fallback_problem=plain(facts.fallback_problem, _MAX_SENTENCE_BYTES),
        fallback_not_taken=facts.fallback_not_taken,
    )


def bounded_telemetry(facts: agent_pb2.TelemetryFacts) -> agent_pb2.TelemetryFacts:
    """Return facts with no longer text, later times or greater number than there may be."""
    return agent_pb2.TelemetryFacts(
        sampled_us=_instant(facts.sampled_us),
        waiting_samples=min(facts.waiting_samples, _MAX_COUNT),
        oldest_waiting_us=_instant(facts.oldest_waiting_us),
        problem=plain(facts.problem, _MAX_SENTENCE_BYTES),
        problem_since_us=_instant(facts.problem_since_us),
    )


def plain(text: str, most_bytes: int) -> str:
    """Return the beginning of a text, with a question mark for what does not print."""
    printable = "".join(each if each.isprintable() else "?" for each in text[:most_bytes])
    return printable.encode()[:most_bytes].decode(errors="ignore")


def _instant(at_us: int) -> int:
    return max(0, min(at_us, _MAX_TIME_US))
