"""The events of the logs: one vocabulary, which docs/reference/log-events.md tells whole."""

import re
from functools import cache
from typing import NamedTuple

import pytest
from tests.repository.log_calls import OF_DISPATCH, REPOSITORY, LogCall, log_calls

from derops.observability import STATIONS

PAGE = REPOSITORY / "docs" / "reference" / "log-events.md"
ROW = re.compile(r"^\| `([a-z_]+\.[a-z_]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.M)
NAME = re.compile(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*")
KNOWN_BY_OTHER_NAMES = {"uid", "error", "message", "problem", "hint", "size", "again_seconds"}
"""What is `dispatch_uid`, `why`, `bytes` or `retry_seconds` everywhere."""


class Row(NamedTuple):
    programs: frozenset[str]
    levels: frozenset[str]
    fields: frozenset[str]
    meaning: str


@cache
def calls() -> tuple[LogCall, ...]:
    return tuple(log_calls())


def words(cell: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Za-z_]+", cell))


def rows() -> dict[str, Row]:
    found = ROW.findall(PAGE.read_text())
    assert len(found) == len({event for event, *_ in found})
    return {
        event: Row(words(programs), words(levels), words(fields), meaning)
        for event, programs, levels, fields, meaning in found
    }


def test_each_event_has_a_row_and_there_is_no_other() -> None:
    assert rows().keys() == {call.event for call in calls()}


def test_a_row_has_the_programs_levels_and_fields_of_the_source() -> None:
    told = rows()
    for event in told:
        of_event = [call for call in calls() if call.event == event]
        assert told[event].programs == {call.program for call in of_event}, event
        assert told[event].levels == frozenset().union(*(call.levels for call in of_event)), event
        assert told[event].fields == frozenset().union(*(call.fields for call in of_event)), event
        assert len(told[event].meaning) > 10, event


@pytest.mark.parametrize("call", calls(), ids=lambda call: f"{call.where} {call.event}")
def test_an_event_is_named_as_all_are(call: LogCall) -> None:
    assert NAME.fullmatch(call.event)
    assert not call.fields & KNOWN_BY_OTHER_NAMES
    if "dispatch_uid" in call.fields:
        assert call.fields >= {"namespace", "asset"}, "a line about a dispatch says of which asset"
    if "asset" in call.fields:
        assert "namespace" in call.fields, "a name alone is any tenant's"
    if call.event.startswith("dispatch."):
        assert call.fields >= OF_DISPATCH


def test_stations_are_events_that_tell_the_dispatch() -> None:
    of_stations = [call for call in calls() if call.event in STATIONS]

    assert {call.event for call in of_stations} == STATIONS
    assert all(call.fields >= OF_DISPATCH and call.levels == {"info"} for call in of_stations)
    assert {call.event for call in calls() if call.event.startswith("dispatch.")} <= STATIONS
