"""A key is stolen: what docs/how-to/stolen-key.md says, command by command, on the real parts."""

import asyncio
import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.e2e.acting import Pilot
from tests.headend.gateway.rig import Agent
from tests.stack.fleet import secret_name
from tests.stack.stack import Stack
from tests.waiting import eventually

from derops.wire.v1 import agent_pb2_grpc

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "stolen-key.md"
NOTICE, QUARANTINE, WHO, REVOKE, KEEP = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
NAME = "battery-7"


@pytest.fixture
def north(stack: Stack) -> Iterator[Pilot]:
    """Return the namespace that the page speaks of."""
    with Pilot.created(stack, "pilot-north") as pilot:
        yield pilot


class Thief:
    """Whoever read the Secret of the agent once."""

    def __init__(self, pilot: Pilot) -> None:
        secret = pilot.get("secret", secret_name(NAME))["data"]
        self._gateway = pilot.stack.gateway
        self._credentials = grpc.ssl_channel_credentials(
            pilot.stack.identities.server_ca.read_bytes(),
            base64.b64decode(secret["tls.key"]),
            base64.b64decode(secret["tls.crt"]),
        )

    def _dial(self) -> Agent:
        options = [("grpc.ssl_target_name_override", "derops-gateway")]
        channel = grpc.aio.secure_channel(self._gateway, self._credentials, options=options)
        return Agent(channel, agent_pb2_grpc.AgentLinkStub(channel).Connect())  # type: ignore[no-untyped-call]

    async def take_over(self) -> str:
        """Take the true agent's stream and hold it; return why it ended."""
        agent = self._dial()
        async with asyncio.timeout(60):
            await agent.connect(time.time_ns() // 1_000_000 + 1000, "thief")
            while (message := await agent.call.read()).WhichOneof("kind") != "bye":
                pass
        await agent.close()
        return str(message.bye.reason)

    async def refusal(self) -> str:
        agent = self._dial()
        reason = (await agent.refusal())[1].partition(":")[0]
        await agent.close()
        return reason


def run(stack: Stack, commands: str) -> str:
    """Run commands of the page as a person would; all of them must succeed."""
    kubectl = Path(stack.control_plane.binaries.kubectl).parent
    environment = {
        **os.environ,
        "KUBECONFIG": stack.kubeconfig,
        "PATH": f"{kubectl}:{os.environ['PATH']}",
        "DEROPS_WRITER_DATABASE_URL": stack.database_url,
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def serial_of(pilot: Pilot) -> str:
    current = pilot.get("derasset", NAME)["status"]["identity"].get("current", {})
    return str(current.get("serialNumber", ""))


def quarantine_of(pilot: Pilot) -> str:
    identity = pilot.get("derasset", NAME)["status"]["identity"]
    return str(identity.get("quarantine", {}).get("reason", ""))


def test_a_stolen_key_is_noticed_revoked_and_of_no_more_use(north: Pilot) -> None:
    """K21: a thief takes the stream; quarantine and Event tell, and the old key is dead after."""
    pilot = north
    pilot.battery(NAME)
    thief, stolen = Thief(pilot), serial_of(pilot)

    assert asyncio.run(thief.take_over()) == "CloneSuspected"

    eventually(lambda: quarantine_of(pilot) == "CloneSuspected", "the quarantine")
    assert asyncio.run(thief.refusal()) in {"CloneSuspected", "Quarantined"}
    noticed = eventually(
        lambda: seen if "battery-7: the agent gets" in (seen := run(pilot.stack, NOTICE)) else None,
        "the Event",
    )
    assert f"pilot-north/{NAME} CloneSuspected" in noticed
    run(pilot.stack, QUARANTINE)
    who = eventually(
        lambda: rows if "CloneSuspected" in (rows := run(pilot.stack, WHO)) else None, "the rows"
    )
    assert stolen in who

    run(pilot.stack, REVOKE)

    fresh = eventually(lambda: serial_of(pilot), "a new certificate")
    assert fresh != stolen
    assert asyncio.run(thief.refusal()) == "UnknownSerial"
    pilot.dispatch("after", asset=NAME, durationSeconds=8)
    pilot.wait_for_phase("after", "Complete")
    assert serial_of(pilot) == fresh

    run(pilot.stack, QUARANTINE)
    assert quarantine_of(pilot) == "SetInSpec"
    run(pilot.stack, KEEP)
    eventually(lambda: not quarantine_of(pilot), "the lift")
    assert serial_of(pilot) == fresh
    pilot.dispatch("kept", asset=NAME, durationSeconds=8)
    pilot.wait_for_phase("kept", "Complete")
    events = json.loads(
        pilot.stack.kubectl("get", "events.events.k8s.io", "-n", pilot.namespace, "-o", "json")
    )
    reasons = [event["reason"] for event in events["items"]]
    assert reasons.count("Lifted") == 2


def test_renewals_in_mid_dispatch_leave_no_gap_and_are_no_thief(pilot: Pilot) -> None:
    pilot.battery(NAME)
    first = pilot.get("derasset", NAME)["status"]
    pilot.dispatch("through", asset=NAME, durationSeconds=40)
    pilot.wait_for_phase("through", "Active")

    serials = [serial_of(pilot)]
    for seconds in (7200, 10800):
        patch = json.dumps({"spec": {"identity": {"certificateDurationSeconds": seconds}}})
        pilot.stack.kubectl(
            "patch", "derasset", NAME, "-n", pilot.namespace, "--type=merge", "-p", patch
        )
        serials.append(
            eventually(
                lambda: serial if (serial := serial_of(pilot)) not in serials else None,
                "a renewed certificate in use",
            )
        )

    status = pilot.wait_for_phase("through", "Complete")
    assert status["execution"].get("interruptions", 0) == 0
    after = pilot.get("derasset", NAME)["status"]
    assert "quarantine" not in after["identity"]
    assert after.get("lastDisconnectedTime") == first.get("lastDisconnectedTime")
