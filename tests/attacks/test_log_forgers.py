"""Who writes into logs that others read: by annotations, devices, reports and floods."""

import json
import logging
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.attacks.kubernetes_callers import REQUEST_ID
from tests.headend.gateway.conftest import _no_pace, leaf, operator, rig
from tests.headend.gateway.rig import Operator, Rig
from tests.operator.making import asset
from tests.operator.test_request_ids import ID, read
from tests.pki import Leaf

from derops.log_fields import MOST_REQUEST_ID_CHARACTERS
from derops.observability import ASSET_LINES_AT_ONCE, FIELD_CHARACTERS, FloodFilter
from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_agent.execution.wire import read_order
from derops_operator.gateways.assignment import submit
from derops_operator.gateways.desired import Desired
from derops_operator.gateways.intake import ReplicaIntake
from derops_operator.gateways.replicas import Fleet
from derops_operator.reconciling.actions import Submit

__all__ = ["_no_pace", "leaf", "operator", "rig"]

FORGED = '\n{"event": "dispatch.ended", "phase": "Complete"}'
ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\u202e"

BAD_IDS = {
    "256 KiB": "x" * 256 * 1024,
    "one too long": "x" * (MOST_REQUEST_ID_CHARACTERS + 1),
    "lines": f"{ID}{FORGED}",
    "a line at its end": f"{ID}\n",
    "escapes": f"{ID}{ESCAPES}",
    "quotes": '"};',
    "digits of another script": "\u0661\u0662",
    "empty": "",
    "no text": 7,
}


@pytest.mark.parametrize("said", BAD_IDS.values(), ids=BAD_IDS)
def test_a_request_id_that_is_none_reaches_nobody_and_refuses_nothing(said: Any) -> None:
    """R196: a dispatch author says an id that is no id."""
    ordered, desired = read({REQUEST_ID: said}), Desired(operator_start_ms=1)
    with capture_logs() as lines:
        submit(desired, ordered, asset(), Submit())

    (line,) = lines
    assert line["event"] == "dispatch.submitted"
    assert "request_id" not in line
    subscription = desired.subscribe()
    subscription.most = 10
    (message,) = [each.dispatch for each in subscription.take() if each.HasField("dispatch")]
    assert message.request_id == ""


@pytest.mark.parametrize("said", [each for each in BAD_IDS.values() if isinstance(each, str)])
def test_an_agent_takes_no_such_id_of_a_gateway(said: str) -> None:
    """The same, by a compromised gateway."""
    order = read_order(dispatch_pb2.Dispatch(uid="d1", request_id=said))

    assert order.request_id == ""
    assert order.log_fields == {"dispatch_uid": "d1"}


LOGGING = """
import logging, structlog, sys
from derops.observability import configure_logging
said = sys.argv[1]
configure_logging()
log = structlog.get_logger("device")
log.warning("sample.failed", why=said, points=[said])
logging.getLogger("library").warning(said)
try:
    raise ValueError(said)
except ValueError:
    log.exception("driver.failed", why=said)
"""


def test_what_a_device_says_makes_no_line_of_its_own_in_json() -> None:
    """R197: a device, a peer or a name holds what would be a line, or what a terminal obeys."""
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, FORGED + ESCAPES], capture_output=True, timeout=60
    )

    told = [json.loads(line) for line in done.stderr.decode("ascii").splitlines()]
    assert [line["event"] for line in told] == [
        "sample.failed",
        FORGED + ESCAPES,
        "driver.failed",
    ]
    assert told[0]["why"] == FORGED + ESCAPES


def test_what_a_device_says_moves_no_terminal() -> None:
    """The same where a person looks at a terminal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"NO_COLOR": "1", "TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, "-c", LOGGING, FORGED + ESCAPES], stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        told = b""
        while process.poll() is None or told[-1:] != b"\n":
            try:
                told += os.read(ours, 65_536)
            except OSError:  # the other end is closed
                break
    os.close(ours)

    text = told.decode().replace("\r\n", "\n")
    assert "sample.failed" in text
    assert "owned" in text
    for each in ("\x1b]", "\x1b[2J", "\x07", "\r", "\u202e", FORGED):
        assert each not in text


async def test_an_agent_that_changes_its_mind_for_ever_hides_no_other(
    rig: Rig,
    leaf: Leaf,
    operator: Operator,
) -> None:
    """R198: an agent reports phase after phase of one dispatch; each is a line."""
    await operator.say(dispatch=rig.dispatch("d1", name="peak"))
    agent = rig.agent(leaf)
    await agent.connect()
    many = int(ASSET_LINES_AT_ONCE) + 50
    with capture_logs() as lines:
        for sequence in range(1, many + 1):
            await agent.report("d1", ("Acked", "Active")[sequence % 2], sequence)
            await agent.read_until("report_ack")

    told = [line for line in lines if line["event"] == "report.taken"]
    assert len(told) == many
    flood = FloodFilter(lambda: 0.0)
    assert sum(flood.filter(_record(line)) for line in told) == ASSET_LINES_AT_ONCE
    assert flood.filter(_record({**told[0], "asset": "honest"}))


def test_a_gateway_that_lies_makes_no_long_lines() -> None:
    """R199: a compromised gateway passes on reports whose words are 250 KiB long."""
    intake = ReplicaIntake(
        Desired(operator_start_ms=1), Fleet(0), lambda _: None, lambda _: "AnotherAsset",
        lambda _: True, lambda: 0,
    )  # fmt: skip
    long = "x" * 50_000
    with capture_logs() as lines:
        for phase in (long, "Acked"):
            report = dispatch_pb2.DispatchReport(dispatch_uid=long, phase=phase)
            said = control_pb2.AgentReport(
                report=report, namespace=long, asset_name=long, asset_uid=long
            )
            intake.take("gateway-0", control_pb2.ReplicaMessage(report=said))

    assert [line["event"] for line in lines] == ["report.not_understood", "report.strange"]
    assert all(len(str(line)) < 2000 for line in lines)


def test_no_text_of_a_line_is_longer_than_any_that_is_needed() -> None:
    """Whatever else somebody makes a program say."""
    long = "x" * 100_000
    done = subprocess.run([sys.executable, "-c", LOGGING, long], capture_output=True, timeout=60)

    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(told[0]["why"]) < FIELD_CHARACTERS + 100
    assert told[0]["why"].endswith("(100000 characters)")
    assert len(told[1]["event"]) < FIELD_CHARACTERS + 100
    assert len(told[2]["exception"]) < FIELD_CHARACTERS + 100


def _record(facts: Any) -> logging.LogRecord:
    return logging.LogRecord("reports", logging.INFO, "", 0, dict(facts), None, None)
