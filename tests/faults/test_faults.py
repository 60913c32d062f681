"""A short run of every fault; ``make soak`` is the long one."""

import asyncio
import random
import subprocess
from pathlib import Path

from tests.faults.running import DRAIN_SECONDS, Field, Report, field_of, judge, run
from tests.stack.nats import NatsServer
from tests.stack.postgres import PostgresServer


async def test_nothing_acknowledged_is_lost_and_nothing_is_stored_twice(tmp_path: Path) -> None:
    with PostgresServer() as server:
        report = await run(tmp_path, server, senders=12, rounds=1, seed=20260101)

    assert report.violations == []
    assert all(rounds == 1 for rounds in report.rounds.values())
    assert len(report.rounds) == 9
    assert report.batches_acknowledged == report.batches_sent
    assert report.rows == 10 * report.batches_sent


async def test_the_same_holds_with_the_log_in_jetstream(tmp_path: Path) -> None:
    with PostgresServer() as server, NatsServer() as nats:
        report = await run(tmp_path, server, senders=12, rounds=1, seed=20260102, nats=nats)

    assert report.violations == []
    assert report.rounds["nats-server killed"] == 1
    assert report.batches_acknowledged == report.batches_sent
    assert report.rows == 10 * report.batches_sent


async def gauge(running: Field, name: str, *, least: float) -> None:
    """Wait until a gauge of the gateway is at least so much."""
    async with asyncio.timeout(DRAIN_SECONDS):
        while (await asyncio.to_thread(running.headend.metrics, "gateway"))[name] < least:
            await asyncio.sleep(0.05)


async def test_a_full_log_stops_telemetry_at_the_agents_and_nothing_is_lost(tmp_path: Path) -> None:
    environment = {"DEROPS_GATEWAY_LOG_MAX_BYTES": "4194304"}
    report = Report(seed=0)
    with PostgresServer() as server:
        async with field_of(
            tmp_path, server, senders=12, seed=0, environment=environment
        ) as running:
            await running.acknowledged_more()
            server.process.terminate()
            await gauge(running, "derops_gateway_log_fill_ratio", least=0.95)
            full = [sender.journal.acknowledged for sender in running.senders]

            await asyncio.to_thread(server.start_again)
            await running.acknowledged_more()
            await running.finish()
            judge(running, server, report)

    assert report.violations == []
    assert report.batches_acknowledged == report.batches_sent > sum(full)


async def test_a_full_disk_is_an_alarm_and_is_got_over(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], check=True)
    report = Report(seed=0)
    try:
        with PostgresServer() as server:
            async with field_of(
                tmp_path, server, senders=12, seed=0, data_directory=disk
            ) as running:
                await running.acknowledged_more()
                filler = disk / "filler"
                with filler.open("wb") as file:
                    for _ in range(48):
                        try:
                            file.write(random.randbytes(1024 * 1024))
                            file.flush()
                        except OSError:
                            break
                await gauge(running, "derops_gateway_log_failing", least=1)

                filler.unlink()
                await running.acknowledged_more()
                failing = await asyncio.to_thread(running.headend.metrics, "gateway")
                await running.finish()
                judge(running, server, report)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

    assert failing["derops_gateway_log_failing"] == 0
    assert report.violations == []
    assert report.batches_acknowledged == report.batches_sent
