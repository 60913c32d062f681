"""The agent's control loop on a simulated device: it sees through what the device pretends."""

from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import FakeClock, FakeOutlet, asset, inline, order
from tests.agent.simulated.rig import BATTERY

from derops.ids import AssetName
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent.asset.controller import AssetController
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.inbox import Snapshot
from derops_agent.asset.ledger import Ledger
from derops_agent.drivers import open_device
from derops_agent.execution.site import LocalLimits


async def dispatch(folder: Path, **options: Any) -> dispatch_pb2.DispatchReport:
    """Let a battery deliver 5 kW for 100 s, sampled each second; return the last report."""
    clock = FakeClock()
    device = GuardedDevice(
        await open_device({"kind": "simulated", **BATTERY, **options}, folder, clock)
    )
    ledger = Ledger(folder / "ledger.db")
    reports: list[dispatch_pb2.DispatchReport] = []
    controller = AssetController(
        AssetName("ns", "battery"),
        device,
        ledger,
        clock,
        inline,
        outlet=FakeOutlet(report=reports.append),
        local=LocalLimits(),
    )
    await controller.boot()
    revision = agent_pb2.Revision(operator_start_ms=1, counter=1)
    controller.take(Snapshot(revision=revision, asset=asset(), dispatches=[order()]))
    for _ in range(180):
        await controller.turn()
        clock.pass_seconds(1)
        reading = await device.sample()
        if controller.holding and reading is not None:
            controller.take(reading)
    await controller.turn()
    await device.close()
    ledger.close()
    return reports[-1]


@pytest.mark.parametrize(
    ("options", "verified", "delivered_watt_hours"),
    [
        ({}, "True", 139),
        ({"initialStateOfChargePercent": 0}, "False", 0),
        ({"faults": {"ignoreSetpoints": True}}, "False", 0),
        ({"faults": {"writeTimeout": {"nextWrites": 3, "acts": True}}}, "True", 139),
    ],
    ids=["good", "empty", "liar", "silent"],
)
async def test_the_report_is_what_the_device_did(
    tmp_path: Path, options: dict[str, Any], verified: str, delivered_watt_hours: float
) -> None:
    report = await dispatch(tmp_path, **options)

    assert report.phase == "Complete"
    assert report.verified == verified
    assert report.delivered_watt_hours == pytest.approx(delivered_watt_hours, abs=3)
