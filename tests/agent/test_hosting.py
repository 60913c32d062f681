"""The whole process in the test's own loop: many assets, a signal, a clean end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import FakeDevice
from tests.agent.gateway import SERVER_NAME, serve
from tests.field.agents import BATTERY
from tests.pki import Authority
from tests.stack import places
from tests.waiting import now

from derops.errors import DeviceRefusedError
from derops_agent import host as host_module
from derops_agent.clock import SystemClock
from derops_agent.host import Host
from derops_agent.settings import AgentSettings
from derops_agent.telemetry.outbox_store import OutboxStore


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

    monkeypatch.setattr(host_module, "open_device", open_device)
    server_ca, agent_ca = Authority("server"), Authority("agent")
    (tmp_path / "ca.crt").write_bytes(server_ca.pem)
    agent_ca.agent("battery").write(tmp_path / "certificates")
    async with serve(server_ca, agent_ca) as gateway:
        running = asyncio.create_task(
            Host(settings(tmp_path, gateway.port, assets=10), SystemClock()).run()
        )
        streams = [await gateway.next_stream() for _ in range(10)]
        for stream in streams:
            await stream.welcome()
        began = now()
        os.kill(os.getpid(), signal.SIGTERM)
        await running

        assert now() - began < 5
        for stream in streams:
            assert (await stream.until("bye")).reason == "Shutdown"
    assert len({stream.received[0].hello.ledger_id for stream in streams}) == 10
    assert len({stream.received[0].hello.outbox_id for stream in streams}) == 10
    OutboxStore(tmp_path / "data" / "outbox.db").close()


@pytest.mark.parametrize(
    "failure",
    [
        DeviceRefusedError("40000 holds 0x12346e53"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text"),
    ],
)
async def test_a_device_that_answers_nonsense_does_not_keep_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def open_device(_: Any, folder: Path, *__: Any) -> FakeDevice:
        if folder.name.endswith("-0"):
            raise failure
        return FakeDevice()

    monkeypatch.setattr(host_module, "open_device", open_device)
    server_ca, agent_ca = Authority("server"), Authority("agent")
    (tmp_path / "ca.crt").write_bytes(server_ca.pem)
    agent_ca.agent("battery").write(tmp_path / "certificates")
    async with serve(server_ca, agent_ca) as gateway:
        host = Host(settings(tmp_path, gateway.port, assets=2), SystemClock())
        running = asyncio.create_task(host.run())
        stream = await gateway.next_stream()
        await stream.welcome()

        ready, told = host._readiness.report()
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    assert not ready
    assert f"device of ns/battery-0: {failure}; the agent connects for the asset once" in told


async def test_no_full_collection_looks_at_what_stays(tmp_path: Path) -> None:
    count = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()))"
    config = tmp_path / "agent.yaml"
    document = settings(tmp_path, 1, assets=1).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    document["assets"][0]["driver"] = dict(BATTERY)
    config.write_text(json.dumps(document | {"opsPort": places.free_port()}))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"{count}; from derops_agent.main import main; main()",
        f"--config={config}",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    async with asyncio.timeout(100):
        while b"agent.started" not in (line := await process.stdout.readline()):
            assert line, "it ended"

    process.send_signal(signal.SIGTERM)
    told, _ = await process.communicate()

    assert int(told.split()[-1]) > 10_000
