"""The whole process in the test's own loop: many assets, a signal, a clean end."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import FakeDevice
from tests.agent.gateway import SERVER_NAME, Authority, serve

from derops_agent import main as main_module
from derops_agent.clock import SystemClock
from derops_agent.main import Host
from derops_agent.outbox_store import OutboxStore
from derops_agent.settings import AgentSettings


def settings(folder: Path, port: int, assets: int) -> AgentSettings:
    return AgentSettings.model_validate(
        {
            "gateways": [f"127.0.0.1:{port}"],
            "serverName": SERVER_NAME,
            "serverCAFile": folder / "ca.crt",
            "dataDirectory": folder / "data",
            "assets": [
                {
                    "namespace": "ns",
                    "name": f"battery-{number}",
                    "certificateDirectory": folder / "certificates",
                    "driver": {"kind": "simulated"},
                }
                for number in range(assets)
            ],
        }
    )


async def test_a_signal_ends_all_assets_with_a_bye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_device(*_: Any) -> FakeDevice:
        return FakeDevice()

    monkeypatch.setattr(main_module, "open_device", open_device)
    server_ca, agent_ca = Authority("server"), Authority("agent")
    (tmp_path / "ca.crt").write_bytes(server_ca.pem)
    agent_ca.write_leaf(tmp_path / "certificates", "battery")
    async with serve(server_ca, agent_ca) as gateway:
        running = asyncio.create_task(
            Host(settings(tmp_path, gateway.port, assets=10), SystemClock()).run()
        )
        streams = [await gateway.next_stream() for _ in range(10)]
        for stream in streams:
            await stream.welcome()
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await running

        assert time.monotonic() - began < 5
        for stream in streams:
            assert (await stream.until("bye")).reason == "Shutdown"
    assert len({stream.received[0].hello.ledger_id for stream in streams}) == 10
    assert len({stream.received[0].hello.outbox_id for stream in streams}) == 10
    OutboxStore(tmp_path / "data" / "outbox.db").close()
