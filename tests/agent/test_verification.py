"""What counts as an effect: of a setpoint, of a limit, and of a window that cannot be judged."""

import pytest
from tests.agent.fakes import Agent, asset, order

from derops.errors import DeviceTimeoutError
from derops_agent.execution.verification import Rule
from derops_agent.ports import Setpoints


@pytest.mark.parametrize(
    ("mode", "target_watts", "power_watts", "good"),
    [
        ("ActivePower", 5000, 4750, True),
        ("ActivePower", 5000, 4749, False),
        ("ActivePower", 5000, 5251, False),
        ("ActivePower", -1000, -900, True),
        ("ActivePower", -1000, 1000, False),
        # A limit is judged by being exceeded: less sun, or no car, is no failure.
        ("GenerationLimit", 3000, 0, True),
        ("GenerationLimit", 3000, -8000, True),
        ("GenerationLimit", 3000, 3150, True),
        ("GenerationLimit", 3000, 3151, False),
        ("GenerationLimit", 0, 101, False),
        ("LoadLimit", 3000, 0, True),
        ("LoadLimit", 3000, 8000, True),
        ("LoadLimit", 3000, -3150, True),
        ("LoadLimit", 3000, -3151, False),
        ("LoadLimit", 0, -101, False),
        ("CeaseToEnergize", 0, 100, True),
        ("CeaseToEnergize", 0, 101, False),
        ("CeaseToEnergize", 0, -101, False),
    ],
)
def test_a_sample_is_good_or_not(
    mode: str, target_watts: int, power_watts: float, good: bool
) -> None:
    assert Rule(settle_us=0).tolerates(mode, target_watts, power_watts) is good


@pytest.mark.parametrize(
    ("tolerance", "mode", "power_watts", "verified"),
    [
        ({"verification_tolerance_percent": 5}, "CeaseToEnergize", -60, "True"),
        ({"verification_tolerance_percent": 5}, "CeaseToEnergize", 101, "False"),
        ({"verification_tolerance_percent": 5}, "ActivePower", -60, "True"),
        ({"verification_tolerance_percent": 5}, "GenerationLimit", 101, "False"),
        ({"verification_tolerance_watts": 20}, "CeaseToEnergize", -60, "False"),
    ],
)
async def test_a_share_of_nothing_leaves_room_for_standby(
    agent: Agent, tolerance: dict[str, int], mode: str, power_watts: float, verified: str
) -> None:
    await agent.give(asset(**tolerance), order(mode=mode, watts=0))
    await agent.wait(60)
    await agent.sampled(power_watts, 100)

    assert agent.report().verified == verified


@pytest.mark.parametrize(
    ("mode", "power_watts", "verified"),
    [
        ("GenerationLimit", 0, "True"),
        ("GenerationLimit", 4000, "False"),
        ("LoadLimit", 5000, "True"),
        ("LoadLimit", -4000, "False"),
    ],
)
async def test_a_limit_that_nothing_comes_near_is_kept(
    agent: Agent, mode: str, power_watts: float, verified: str
) -> None:
    await agent.give(order(mode=mode, watts=3000))
    await agent.wait(60)
    await agent.sampled(power_watts, 100)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().verified == verified


async def test_a_window_that_is_too_short_to_be_judged_is_no_failure(agent: Agent) -> None:
    await agent.give(asset(verification_settle_seconds=100), order())
    await agent.wait(60)
    await agent.sampled(0, 100)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert (agent.report().verified, agent.report().verified_reason) == ("Unknown", "NotVerifiable")


@pytest.mark.parametrize(
    ("verify", "outcome"),
    [("Report", ("Complete", "WindowEnded")), ("Required", ("Failed", "EffectNotObserved"))],
)
async def test_what_was_hardly_measured_is_not_known(
    agent: Agent, verify: str, outcome: tuple[str, str]
) -> None:
    await agent.give(order(verify=verify))
    await agent.wait(60)
    await agent.sampled(5000, 30)
    await agent.wait(70, step=10)

    assert agent.outcome() == outcome
    assert (agent.report().verified, agent.report().verified_reason) == ("Unknown", "TooFewSamples")


async def test_a_device_that_does_not_say_what_it_holds_is_known_by_its_power(
    agent: Agent,
) -> None:
    async def mute() -> Setpoints:
        raise DeviceTimeoutError("no answer")

    agent.device.read_setpoints = mute  # type: ignore[method-assign]
    await agent.give(order())
    await agent.wait(60)
    assert agent.outcome() == ("Active", "Applied")
    report = agent.report()
    assert (report.evidence, report.verified_reason) == ("Written", "ReadBackFailed")

    await agent.sampled(5000, 10)
    report = agent.report()
    assert (report.evidence, report.verified_reason) == ("Effect", "EffectWithinTolerance")
