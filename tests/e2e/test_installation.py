"""What is broken for all assets is named in one ConfigMap, that and nothing else, until mended."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.e2e.acting import Pilot
from tests.e2e.failing_database import full, refusing, stopped
from tests.stack.identities import NAMESPACE
from tests.stack.stack import Stack
from tests.waiting import eventually

from derops.installation import CONFIG_MAP, KEY
from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend.eventlog.sqlite import SqliteEventLog

LOG_BYTES = 1024 * 1024


def told(stack: Stack) -> dict[str, str]:
    """Return the reason of each condition that is not True."""
    text = stack.kubectl(
        "get", "configmap", CONFIG_MAP, "-n", NAMESPACE, "-o", "json", "--ignore-not-found"
    )
    if not text:
        return {CONFIG_MAP: "not written yet"}
    conditions: list[dict[str, Any]] = json.loads(json.loads(text)["data"][KEY])["conditions"]
    return {each["type"]: each["reason"] for each in conditions if each["status"] != "True"}


def wait_until_told(stack: Stack, **reasons: str) -> None:
    eventually(lambda: told(stack) == reasons, f"{CONFIG_MAP} to say {reasons or 'all is well'}")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (stopped, "DatabaseUnreachable"),
        (refusing, "DatabaseRefuses"),
        (full, "DatabaseFull"),
    ],
    ids=["database stopped", "password refused", "database full"],
)
def test_a_database_that_does_not_store_is_named_and_nothing_else(
    stack: Stack, pilot: Pilot, broken: Callable[[Stack], Any], reason: str
) -> None:
    pilot.battery()
    wait_until_told(stack)
    with broken(stack):
        wait_until_told(stack, DatabaseStores=reason)
    wait_until_told(stack)


def test_a_dead_writer_and_then_a_full_log_are_named(stack: Stack) -> None:
    wait_until_told(stack)
    stack.kill("writer")
    # Nobody else knows how the database does.
    wait_until_told(stack, WriterFollows="WriterSilent", DatabaseStores="NotTold")

    gateway = stack.parts["gateway"]
    gateway.terminate()
    log = SqliteEventLog(stack.data_directory / "headend" / "events.db")
    asset = dispatch_pb2.AssetId(uid="filler", namespace="nowhere", name="filler")
    entry = log_pb2.LogEntry(asset=asset, received_us=1, body=bytes(LOG_BYTES // 8))
    for _ in range(8):  # the last record always stays
        asyncio.run(log.append([entry]))
    log.close()
    gateway.environment["DEROPS_GATEWAY_LOG_MAX_BYTES"] = str(LOG_BYTES)
    stack.restart("gateway")
    try:
        wait_until_told(
            stack, LogTakesData="LogFull", WriterFollows="WriterSilent", DatabaseStores="NotTold"
        )
    finally:
        stack.restart("writer")
        wait_until_told(stack)
        gateway.terminate()
        del gateway.environment["DEROPS_GATEWAY_LOG_MAX_BYTES"]
        stack.restart("gateway")
