"""What one agent says of its device and its telemetry, and when that is news for the operator."""

from dataclasses import dataclass

from derops.data_path import stale_after_seconds
from derops.devices import bounded, bounded_telemetry
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2
from derops_headend.fleet.asset_path import (
    Evidence,
    Refusal,
    Verdict,
    is_clock_wrong,
    judge,
    plausible,
    settling_us,
    write_state,
)

LOOK_EVERY_US = 5 * SECOND_US
"""How often the gateway looks at what one agent says of its device and its telemetry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the gateway itself knows as it looks."""

    received_us: int
    """When the heartbeat came, by the wall clock."""

    at_us: int
    """The wall clock, no earlier than the stream."""

    monotonic_us: int
    interval_seconds: int
    """The telemetry interval of the asset."""

    refusal: Refusal | None
    free_us: int
    """For how long the gateway has taken all telemetry that came."""


class AssetWatch:
    """What is known of one asset through its stream.

    The reason why a link is broken changes at most twice in a minute: after each change, and after
    the stream began, no link is accused for as long as samples may be old, or ten minutes; nor is
    one, for as long as samples may be old, after the interval changed or the agent's clock was set.

    Args:
        opened_us: When the stream began, by the monotonic clock.
    """

    __slots__ = ("_accuse_from_us", "_device", "_look_us", "_path", "_under")

    def __init__(self, opened_us: int) -> None:
        self._device: tuple[agent_pb2.DeviceFacts, int] | None = None
        self._path: tuple[Verdict, int] | None = None
        self._look_us = 0
        self._accuse_from_us = opened_us
        self._under: tuple[int, bool] | None = None
        """Limit, and whether the clock is wrong, of the last look."""

    def is_due(self, monotonic_us: int) -> bool:
        """Tell whether it is time to look again: a later heartbeat brings the same facts."""
        return monotonic_us >= self._look_us

    def take(self, heartbeat: agent_pb2.Heartbeat, around: Surroundings) -> bool:
        """Look at what a heartbeat says; tell whether there is news for the operator."""
        self._look_us = around.monotonic_us + LOOK_EVERY_US
        if not heartbeat.HasField("device"):
            return False  # an older agent, or one that knows nothing yet
        facts = bounded(heartbeat.device)
        for point in facts.bad_points:
            point.ClearField("samples")  # it rises with each sample, which is no news
        is_news = self._device is None or facts != self._device[0]
        if is_news:
            self._device = facts, around.at_us
        if heartbeat.HasField("telemetry"):
            is_news |= self._judge(heartbeat, facts, around)
        return is_news

    def state_of(self, asset_uid: str) -> control_pb2.DeviceState | None:
        """Return what the operator is to know; None = nothing is known yet."""
        if self._device is None:
            return None
        facts, received_us = self._device
        return control_pb2.DeviceState(
            asset_uid=asset_uid,
            facts=facts,
            received_us=received_us,
            path=write_state(*self._path) if self._path is not None else None,
        )

    def _judge(
        self, heartbeat: agent_pb2.Heartbeat, device: agent_pb2.DeviceFacts, around: Surroundings
    ) -> bool:
        """Judge the path; tell whether the reason for what is broken is another than before."""
        sent_us = plausible(heartbeat.agent_sent_us)
        clock_behind_us = around.received_us - sent_us
        under = stale_after_seconds(around.interval_seconds), is_clock_wrong(clock_behind_us)
        settling = settling_us(under[0])
        if self._under is None:
            self._accuse_from_us += settling
        elif self._under != under:
            self._accuse_from_us = around.monotonic_us + under[0] * SECOND_US
        self._under = under
        verdict = judge(
            Evidence(
                device=device,
                telemetry=bounded_telemetry(heartbeat.telemetry),
                sent_us=sent_us,
                clock_behind_us=clock_behind_us,
                refusal=around.refusal,
                limit_seconds=under[0],
                may_accuse=around.monotonic_us >= self._accuse_from_us,
                free_us=around.free_us,
                is_first=self._path is None,
            )
        )
        if verdict is None or (self._path and verdict.reason is self._path[0].reason):
            return False
        if self._path is not None or verdict.reason is not None:
            self._accuse_from_us = around.monotonic_us + settling
        self._path = verdict, around.at_us
        return True
