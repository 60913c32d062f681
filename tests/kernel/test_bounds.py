"""What every program bounds: lines, and connections to the ops port."""

import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from tests.counters import value_of

from derops import metrics
from derops.observability import (
    ASSET_LINES_AT_ONCE,
    LINES_AT_ONCE,
    STATION_LINES_AT_ONCE,
    FloodFilter,
    OpsServer,
    Readiness,
)
from derops.ops_server import MAX_CONNECTIONS, MAX_REQUEST_BYTES
from derops.rates import Rates


def test_who_is_held_back_hears_of_it_the_next_time() -> None:
    rates = Rates(per_second=0.5, burst=2)

    assert [rates.admit("a", now) for now in (0, 0, 0, 1, 2, 3)] == [0, 0, None, None, 2, None]
    assert rates.admit("b", 3) == 0


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    rates = Rates(per_second=1, burst=1)

    assert [rates.admit("a", now) for now in (100, 5, 6)] == [0, None, 1]


def test_the_keys_are_bounded() -> None:
    rates = Rates(per_second=0, burst=1)
    for number in range(30_000):
        rates.admit(str(number), 0)

    assert rates.admit("10000", 0) is None
    assert rates.admit("9999", 0) == 0  # forgotten


def line(event: str) -> logging.LogRecord:
    return logging.LogRecord("agent", logging.WARNING, "", 0, {"event": event}, None, None)


def test_a_flood_of_one_event_is_summed_up_and_hides_no_other() -> None:
    now = [0.0]
    flood = FloodFilter(lambda: now[0])
    told = sum(flood.filter(line("agent.refused")) for _ in range(5000))
    other = flood.filter(line("clone.suspected"))
    now[0] = 1.0
    after = line("agent.refused")

    assert told == LINES_AT_ONCE
    assert other
    assert flood.filter(after)
    assert after.msg == {"event": "agent.refused", "left_out": 4500}


def station(asset: int | str, event: str = "dispatch.moved") -> logging.LogRecord:
    facts = {"event": event, "namespace": "pilot", "asset": f"a{asset}"}
    return logging.LogRecord("journal", logging.INFO, "", 0, facts, None, None)


def test_each_dispatch_of_a_fleet_that_starts_at_once_is_told() -> None:
    flood = FloodFilter(lambda: 0.0)

    for event in ("dispatch.written", "report.taken", "report.taken"):
        assert all(flood.filter(station(number, event)) for number in range(10_000))


def test_an_asset_that_floods_hides_no_other() -> None:
    now = [0.0]
    flood = FloodFilter(lambda: now[0])
    told = sum(flood.filter(station("liar")) for _ in range(100_000))
    now[0] = 1.0
    after = station("liar")

    assert told == ASSET_LINES_AT_ONCE
    assert flood.filter(station("honest"))
    assert flood.filter(after)
    assert isinstance(after.msg, dict)
    assert after.msg["left_out"] == 100_000 - told


def test_lines_of_dispatches_have_a_bound_for_all_assets() -> None:
    flood = FloodFilter(lambda: 0.0)
    many = int(STATION_LINES_AT_ONCE)
    left_out = metrics.LOG_LINES_LEFT_OUT.labels(of="dispatches")
    before = value_of(left_out)

    told = sum(flood.filter(station(number)) for number in range(many + 100))

    assert told == many
    assert value_of(left_out) == before + 100


@pytest.fixture
def ops() -> Iterator[OpsServer]:
    server = OpsServer("127.0.0.1", 0, Readiness())
    server.start()
    yield server
    server.stop()


def livez(ops: OpsServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{ops.port}/livez", timeout=30) as answer:
        return str(answer.read().decode())


def test_connections_that_say_nothing_keep_no_probe_from_its_answer(ops: OpsServer) -> None:
    """A stranger in the network opens connections to the ops port and says nothing."""
    before = threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", ops.port)) for _ in range(10 * MAX_CONNECTIONS)]

    answered = livez(ops)
    threads = threading.active_count() - before
    for each in idle:
        each.close()

    assert answered == "ok\n"
    assert threads <= MAX_CONNECTIONS


def test_a_request_without_end_is_cut_off(ops: OpsServer) -> None:
    with socket.create_connection(("127.0.0.1", ops.port), timeout=10) as peer:
        peer.sendall(b"GET /livez HTTP/1.0\r\n")
        peer.sendall(b"X-Long: " + b"y" * MAX_REQUEST_BYTES)  # and no end of the line

        assert peer.recv(12) == b"HTTP/1.0 200"
