"""One search for an id gives the way of a dispatch, through all programs, and back."""

import json
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
    ("agent", "dispatch.reverted", ""),
    ("agent", "dispatch.moved", "Complete"),
    ("gateway", "report.taken", "Complete"),
    ("operator", "dispatch.ended", "Complete"),
    ("writer", "dispatch.recorded", "Complete"),
]
"""The stations: which program says what, and of which phase."""
IN_ORDER = [
    [*WAY[1:5], WAY[6], WAY[8], WAY[9]],
    [WAY[3], WAY[5], WAY[7], WAY[10]],
    [WAY[1], WAY[11]],
    [WAY[3], WAY[12]],
]
"""Of each, none can be said before the one before it. Whoever waits for a report gets it before the
agent logs it, and the operator hears of it before the gateway has it on its disk."""


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


class Trader:
    """Somebody who calls the API."""

    def __init__(self, pilot: Pilot) -> None:
        self.pilot = pilot
        self.token = make_tenant(pilot.stack.control_plane, pilot.namespace).token("dispatcher")
        self._trust = ssl.create_default_context(
            cadata=pilot.stack.identities.server_ca.read_text()
        )

    def post(self, path: str = "", **order: Any) -> httpx.Response:
        url = f"{self.pilot.stack.api_url}/v1/namespaces/{self.pilot.namespace}/dispatches{path}"
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": "one"}
        with httpx.Client(verify=self._trust, timeout=60) as client:
            return client.post(url, json=order or None, headers=headers)

    def order(self, duration_seconds: int) -> httpx.Response:
        return self.post(
            asset="battery",
            setpoint={"mode": "ActivePower", "activePowerWatts": 3000},
            durationSeconds=duration_seconds,
            startDeadlineSeconds=60,
            latePolicy="KeepDuration",
        )


@pytest.fixture
def trader(pilot: Pilot) -> Trader:
    return Trader(pilot)


def test_one_search_follows_an_order_by_rest_to_the_device_and_back(
    pilot: Pilot, trader: Trader
) -> None:
    pilot.battery()
    wait_until_believed(pilot)

    answer = trader.order(3)

    assert answer.status_code == 201, answer.text
    request_id, uid = answer.headers["x-request-id"], answer.json()["uid"]
    of_uid = wait_for_way(pilot, uid, WAY)
    of_request = wait_for_way(pilot, request_id, WAY)
    assert stations(of_uid) == stations(of_request)
    for chain in IN_ORDER:
        places = [stations(of_uid).index(station) for station in chain]
        assert places == sorted(places), stations(of_uid)
    for line in of_uid:
        assert (line["namespace"], line["asset"]) == (pilot.namespace, "battery"), line
        assert (line["dispatch_uid"], line["request_id"]) == (uid, request_id), line
        assert line["level"] == "info", line
    assert len(of_uid) <= 25, stations(of_uid)
    logs = "".join(log.read_text() for log in logs_of(pilot).values())
    assert trader.token not in logs
    assert "PRIVATE KEY" not in logs
    (row,) = pilot.rows("select request_id, phase from dispatch where dispatch_uid = %s", uid)
    assert row == (request_id, "Complete")

    again = trader.order(3)

    assert again.headers["idempotency-replayed"] == "true"
    (repeated,) = lines_with(pilot, again.headers["x-request-id"])
    assert (repeated["event"], repeated["dispatch_uid"]) == ("dispatch.repeated", uid)


def test_one_search_follows_an_order_by_kubectl_and_its_cancel_by_rest(
    pilot: Pilot, trader: Trader
) -> None:
    pilot.battery()
    pilot.dispatch("by-kubectl", durationSeconds=600)
    pilot.wait_for_phase("by-kubectl", "Active")
    uid = pilot.get("dispatch", "by-kubectl")["metadata"]["uid"]

    answer = trader.post("/by-kubectl/cancel")

    assert answer.status_code == 200, answer.text
    way = [*WAY[1:8], ("operator", "dispatch.withdrawn", ""), ("api", "dispatch.cancel_asked", "")]
    way += [(who, event, phase.replace("Complete", "Cancelled")) for who, event, phase in WAY[8:]]
    lines = wait_for_way(pilot, uid, way)
    asked = [line["event"] for line in lines if "request_id" in line]
    assert asked == ["dispatch.cancel_asked"]
    assert answer.headers["x-request-id"] in {line.get("request_id") for line in lines}
    written = [line["cancelled"] for line in lines if line["event"] == "dispatch.written"]
    assert written[:2] == [False, True]
