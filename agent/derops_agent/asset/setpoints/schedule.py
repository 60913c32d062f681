"""When a device is to be asked or written again."""

from derops_agent.asset.setpoints.state import DeviceState
from derops_agent.clock import Moment
from derops_agent.execution import claims, ramp, windows
from derops_agent.execution.site import AssetSpec
from derops_agent.execution.state import Stage
from derops_agent.execution.windows import Executions


def due_in_us(
    state: DeviceState, scope: Executions, asset: AssetSpec | None, now: Moment
) -> int | None:
    """Return in how many microseconds the device is to be acted on; None = not by itself."""
    ending = claims.without(scope, windows.staying(scope, now))
    stages = {e.stage for e in ending.values()}
    waits = Stage.APPLYING in stages and Stage.REVERTING not in stages
    held_off_us = state.held_off_us(asset, now) if waits else 0
    candidates = (_again_in_us(state, held_off_us, now), _next_step_in_us(state, asset, now))
    ahead = [each for each in candidates if each is not None]
    if held_off_us:
        ahead.append(held_off_us)
    return max(0, min(ahead)) if ahead else None


def _again_in_us(state: DeviceState, held_off_us: int, now: Moment) -> int | None:
    """Return in how many microseconds the last write is asked after, or made again."""
    now_us = now.monotonic_us
    again_us = max(state.retry_at_us - now_us, held_off_us)
    if state.awaited is not None:
        ask_us = state.awaited.ask_at_us - now_us
        return min(ask_us, again_us) if state.awaited.is_over else ask_us
    if state.failed is not None:
        return again_us
    if state.refresh_at_us is not None:
        return max(state.refresh_at_us - now_us, held_off_us)
    return None


def _next_step_in_us(state: DeviceState, asset: AssetSpec | None, now: Moment) -> int | None:
    """Return in how many microseconds a ramp goes on; None = none is under way."""
    if not state.ramping or state.stepped_at_us is None or asset is None:
        return None
    return state.stepped_at_us + ramp.step_us(asset) - now.monotonic_us
