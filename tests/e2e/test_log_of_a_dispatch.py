"""One search for an id gives the way of a dispatch, through all programs, and back."""

import json
import secrets
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.rig import make_tenant
from tests.e2e.acting import Pilot
from tests.e2e.test_who_ordered_it import wait_until_believed
from tests.waiting import eventually

WAY = [
    ("api", "dispatch.created", ""),
    ("operator", "dispatch.submitted", ""),
    ("gateway", "dispatch.stored", ""),
    ("gateway", "dispatch.written", ""),
    ("agent", "dispatch.moved", "Acked"),
    ("gateway", "report.taken", "Acked"),
    ("agent", "dispatch.moved", "Active"),
    ("gateway", "report.taken", "Active"),
    ("agent", "dispatch.moved", "Complete"),
    ("agent", "dispatch.reverted", ""),
    ("gateway", "report.taken", "Complete"),
    ("operator", "dispatch.ended", "Complete"),
    ("writer", "dispatch.recorded", "Complete"),
]
"""The stations: which program says what, and of which phase."""

OF_KUBECTL = WAY[1:]
BEFORE = [
    ("dispatch.submitted", ""),
    ("dispatch.stored", ""),
    ("dispatch.written", ""),
    ("dispatch.moved", "Acked"),
    ("dispatch.moved", "Active"),
    ("dispatch.reverted", ""),
    ("dispatch.ended", "Complete"),
]
"""What one of them cannot say before the one above it. The API tells once Kubernetes has answered:
the others may be faster."""


def logs_of(pilot: Pilot) -> dict[str, Path]:
    parts = {name: pilot.stack.parts[name].log_file for name in ("operator", "gateway", "writer")}
    agent = pilot.stack.fleet.get(pilot.namespace, "battery").process.log_file
    return {**parts, "api": pilot.stack.parts["api"].log_file, "agent": agent}


def lines_with(pilot: Pilot, word: str) -> list[dict[str, Any]]:
    """Return what "grep" finds in the logs of all programs, in order of time."""
    found = [
        {**json.loads(line), "program": program}
        for program, log in logs_of(pilot).items()
        for line in log.read_text().splitlines()
        if word in line
    ]
    return sorted(found, key=lambda line: str(line["timestamp"]))


def stations(lines: Iterable[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(line["program"], line["event"], line.get("phase", "")) for line in lines]


def wait_for_way(pilot: Pilot, word: str, way: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]] | None:
        lines = lines_with(pilot, word)
        return lines if set(way) <= set(stations(lines)) else None

    return eventually(look, f"all stations of {word}")


def order(pilot: Pilot, token: str) -> httpx.Response:
    authority = pilot.stack.identities.server_ca
    body = {
        "asset": "battery",
        "setpoint": {"mode": "ActivePower", "activePowerWatts": 3000},
        "durationSeconds": 3,
        "startDeadlineSeconds": 60,
        "latePolicy": "KeepDuration",
    }
    trust = ssl.create_default_context(cadata=authority.read_text())
    with httpx.Client(verify=trust, timeout=60) as client:
        return client.post(
            f"{pilot.stack.api_url}/v1/namespaces/{pilot.namespace}/dispatches",
            json=body,
            headers={
                "Authorization": f"Bearer {token}",
                "Idempotency-Key": secrets.token_hex(8),
            },
        )


@pytest.fixture
def token(pilot: Pilot) -> str:
    return make_tenant(pilot.stack.control_plane, pilot.namespace).token("dispatcher")


def test_one_search_follows_an_order_by_rest_to_the_device_and_back(
    pilot: Pilot, token: str
) -> None:
    pilot.battery()
    wait_until_believed(pilot)

    answer = order(pilot, token)

    assert answer.status_code == 201, answer.text
    request_id, uid = answer.headers["x-request-id"], answer.json()["uid"]
    of_uid = wait_for_way(pilot, uid, WAY)
    of_request = wait_for_way(pilot, request_id, WAY)
    assert [line for line in of_uid if "dispatch_uid" in line] == [
        line for line in of_request if "dispatch_uid" in line
    ]
    assert_in_order(of_uid, BEFORE)
    for line in of_uid:
        assert (line["namespace"], line["asset"]) == (pilot.namespace, "battery"), line
        assert (line["dispatch_uid"], line["request_id"]) == (uid, request_id), line
        assert line["level"] == "info", line
    assert token not in "".join(log.read_text() for log in logs_of(pilot).values())
    assert "PRIVATE KEY" not in "".join(log.read_text() for log in logs_of(pilot).values())
    assert len(of_uid) <= 25, stations(of_uid)
    (row,) = pilot.rows("select request_id, phase from dispatch where dispatch_uid = %s", uid)
    assert row == (request_id, "Complete")


def test_one_search_follows_an_order_by_kubectl_and_its_cancel(pilot: Pilot, token: str) -> None:
    pilot.battery()
    pilot.dispatch("by-kubectl", durationSeconds=600)
    pilot.wait_for_phase("by-kubectl", "Active")
    uid = pilot.get("dispatch", "by-kubectl")["metadata"]["uid"]

    pilot.cancel("by-kubectl")

    way = [*OF_KUBECTL[:6], ("operator", "dispatch.withdrawn", "")]
    way += [
        (program, event, phase.replace("Complete", "Cancelled"))
        for program, event, phase in (OF_KUBECTL[7:])
    ]
    lines = wait_for_way(pilot, uid, way)
    assert "request_id" not in {name for line in lines for name in line}
    assert [line["cancelled"] for line in lines if line["event"] == "dispatch.written"][:2] == [
        False,
        True,
    ]


def assert_in_order(lines: list[dict[str, Any]], way: list[tuple[str, str]]) -> None:
    told = [(line["event"], line.get("phase", "")) for line in lines]
    places = [told.index(station) for station in way]
    assert places == sorted(places), told
