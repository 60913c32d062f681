"""Every way in which a simulated device can be broken, by its options or while it runs."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.agent.simulated.rig import BATTERY, T0, Rig

from derops.errors import (
    DeviceError,
    DeviceRefusedError,
    DeviceTimeoutError,
    DeviceUnreachableError,
)
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.simulated.faults import write_faults
from derops_agent.drivers.simulated.storing import DeviceFiles
from derops_agent.ports import Setpoints

FIVE = Setpoints(active_power_watts=5_000)
Breaker = Callable[..., Rig]


@pytest.fixture(params=["options", "file"])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Breaker:
    """Return what makes a battery with the faults given, from its start or while it runs."""

    def make(**faults: Any) -> Rig:
        if request.param == "options":
            return Rig(tmp_path, {**BATTERY, "faults": faults})
        rig = Rig(tmp_path, BATTERY)
        (tmp_path / "faults.json").write_text(json.dumps(faults))
        return rig

    return make


async def outcomes(rig: Rig, count: int) -> list[str]:
    """Return how that many writes went."""
    seen = []
    for watts in range(1, count + 1):
        try:
            await rig.device.write(Setpoints(active_power_watts=watts))
            seen.append("held")
        except DeviceError as error:
            seen.append(type(error).__name__)
    return seen


async def test_refused_writes(broken: Breaker) -> None:
    rig = broken(refuseWrites=True)

    with pytest.raises(DeviceRefusedError, match="refuses setpoints"):
        await rig.device.write(FIVE)

    assert await rig.device.read_setpoints() == Setpoints()
    assert rig.told() == []


async def test_the_next_writes_time_out_and_do_nothing(broken: Breaker) -> None:
    rig = broken(writeTimeout={"nextWrites": 2})

    assert await outcomes(rig, 4) == ["DeviceTimeoutError"] * 2 + ["held"] * 2
    assert rig.told() == [3, 4]


async def test_the_next_writes_are_counted_over_a_restart(broken: Breaker) -> None:
    rig = broken(writeTimeout={"nextWrites": 2})
    assert await outcomes(rig, 1) == ["DeviceTimeoutError"]

    rig.restart()

    assert await outcomes(rig, 3) == ["DeviceTimeoutError", "held", "held"]


async def test_a_device_may_act_and_then_fall_silent(broken: Breaker) -> None:
    rig = broken(writeTimeout={"nextWrites": 1, "acts": True})

    with pytest.raises(DeviceTimeoutError):
        await rig.device.write(FIVE)

    assert await rig.device.read_setpoints() == FIVE
    assert rig.told() == [5_000]


async def test_what_is_offline_cannot_have_acted(broken: Breaker) -> None:
    rig = broken(offlineFrom="2000-01-01T00:00:00Z")

    with pytest.raises(DeviceUnreachableError):
        await rig.device.write(FIVE)

    assert rig.told() == []


async def test_some_writes_time_out_by_the_seed(tmp_path: Path) -> None:
    faults = {"writeTimeout": {"probability": 0.3}}
    stories = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        rig = Rig(tmp_path / folder, {**BATTERY, "seed": seed, "faults": faults})
        stories.append(await outcomes(rig, 60))

    assert 8 < stories[0].count("DeviceTimeoutError") < 28
    assert stories[0] == stories[1]
    assert stories[0] != stories[2]


async def test_a_liar_says_yes_and_holds_what_it_held(broken: Breaker) -> None:
    rig = broken(ignoreWrites=True)

    await rig.device.write(FIVE)

    assert await rig.device.read_setpoints() == Setpoints()
    assert await rig.power(after_seconds=30) == 0
    assert rig.told() == []


async def test_a_better_liar_reads_back_what_it_does_not_do(broken: Breaker) -> None:
    rig = broken(ignoreSetpoints=True)

    await rig.device.write(FIVE)

    assert await rig.device.read_setpoints() == FIVE
    assert await rig.power(after_seconds=30) == 0
    assert rig.told() == [5_000]


async def test_a_device_that_answers_no_question_still_takes_writes(broken: Breaker) -> None:
    rig = broken(readTimeout=True)

    await rig.device.write(FIVE)

    assert rig.told() == [5_000]
    with pytest.raises(DeviceTimeoutError):
        await rig.device.read_setpoints()
    with pytest.raises(DeviceTimeoutError):
        await rig.device.sample()


def instant(seconds: float) -> str:
    return datetime.fromtimestamp(T0 / 1e6 + seconds, UTC).isoformat()


@pytest.mark.parametrize(
    ("faults", "online"),
    [
        ({"offlineFrom": instant(10), "offlineUntil": instant(20)}, [True, False, True]),
        ({"offlineFrom": instant(10)}, [True, False, False]),
        ({"offlineUntil": instant(20)}, [False, False, True]),
    ],
)
async def test_offline_for_a_time(
    broken: Breaker, faults: dict[str, str], online: list[bool]
) -> None:
    rig = broken(**faults)
    answered = []
    for _ in range(3):
        answers = []
        for call in (rig.device.sample, rig.device.read_setpoints, lambda: rig.device.write(FIVE)):
            try:
                await call()
                answers.append(True)
            except DeviceTimeoutError:
                answers.append(False)
        assert len(set(answers)) == 1
        answered.append(answers[0])
        rig.pass_seconds(10)

    assert answered == online


async def test_offline_is_a_matter_of_the_line_not_of_the_device(tmp_path: Path) -> None:
    rig = Rig(tmp_path, BATTERY)
    await rig.device.write(FIVE)
    write_faults(rig.state_file, offlineFrom="2020-01-01T00:00:00Z")
    with pytest.raises(DeviceTimeoutError, match="offline"):
        await rig.values(after_seconds=1800)

    write_faults(rig.state_file)

    injected = agent_pb2.ENERGY_INJECTED_WATT_HOURS
    assert (await rig.values(after_seconds=1800))[injected] == pytest.approx(5_000, rel=0.01)


async def test_a_slow_write_can_be_given_up(broken: Breaker) -> None:
    rig = broken(writeDelaySeconds=3600)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await rig.device.write(FIVE)

    assert rig.told() == []


async def test_the_file_stands_for_the_options_while_it_is_there(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {**BATTERY, "faults": {"refuseWrites": True}})
    write_faults(rig.state_file)
    await rig.device.write(FIVE)

    (tmp_path / "faults.json").unlink()

    with pytest.raises(DeviceRefusedError):
        await rig.device.write(FIVE)


async def test_writing_the_file_again_counts_anew(tmp_path: Path) -> None:
    rig = Rig(tmp_path, BATTERY)
    fault = {"nextWrites": 1}
    write_faults(rig.state_file, writeTimeout=fault)
    first = await outcomes(rig, 2)

    write_faults(rig.state_file, writeTimeout=fault)

    assert await outcomes(rig, 2) == first == ["DeviceTimeoutError", "held"]


@pytest.mark.parametrize("content", ["{", '{"refuseWrite": true}', '{"refuseWrites": "maybe"}'])
async def test_a_file_that_cannot_be_read_changes_nothing(tmp_path: Path, content: str) -> None:
    rig = Rig(tmp_path, BATTERY)
    write_faults(rig.state_file, refuseWrites=True)
    with pytest.raises(DeviceRefusedError):
        await rig.device.write(FIVE)

    (tmp_path / "faults.json").write_text(content)
    with pytest.raises(DeviceRefusedError):
        await rig.device.write(FIVE)
    (tmp_path / "faults.json").write_text("{}")

    await rig.device.write(FIVE)


async def test_a_disk_that_fails_is_a_write_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, BATTERY)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DeviceFiles, "save", fail)

    with pytest.raises(DeviceTimeoutError, match="No space left"):
        await rig.device.write(FIVE)
    assert await rig.power(after_seconds=60) == pytest.approx(5_000, rel=0.01)
    await rig.device.close()


async def test_local_control_is_told_and_refuses(broken: Breaker) -> None:
    rig = broken(localControl=True)

    with pytest.raises(DeviceRefusedError, match="local control"):
        await rig.device.write(FIVE)

    assert (await rig.device.sample()).local_control


async def test_a_bad_point_is_one_absent_quantity(broken: Breaker) -> None:
    rig = broken(badPoints=["stateOfChargePercent", "localControl"])

    reading = await rig.device.sample()

    assert agent_pb2.STATE_OF_CHARGE_PERCENT not in reading.values
    assert agent_pb2.ACTIVE_POWER_WATTS in reading.values
    assert [(bad.name, bad.quantity) for bad in reading.bad_points] == [
        ("stateOfChargePercent", agent_pb2.STATE_OF_CHARGE_PERCENT),
        ("localControl", 0),
    ]


@pytest.mark.parametrize("begins_anew", [True, False])
async def test_a_late_read_back(broken: Breaker, begins_anew: bool) -> None:
    rig = broken(lateReadBack={"seconds": 3, "beginsAnew": begins_anew})

    await rig.device.write(FIVE)
    assert (await rig.device.read_setpoints(), rig.told()) == (Setpoints(), [5_000])
    rig.pass_seconds(2)
    await rig.device.write(FIVE)
    rig.pass_seconds(1)
    assert await rig.device.read_setpoints() == (Setpoints() if begins_anew else FIVE)
    rig.pass_seconds(2)
    assert await rig.device.read_setpoints() == FIVE
