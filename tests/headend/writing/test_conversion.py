"""From entries to rows, and from rows to the bytes of COPY, without a database."""

import math
import struct
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.headend.writing.making import (
    DISPATCH,
    NAN,
    T0_US,
    bad_entries,
    batch,
    connection,
    entry,
    gap,
    report,
    sources,
    telemetry,
    transition,
)

from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2, log_pb2
from derops_headend.writing.binary_copy import COLUMNS, POSTGRES_EPOCH_US, encode_samples
from derops_headend.writing.conversion import convert
from derops_headend.writing.rows import NUMBERS, QUANTITIES, Samples


def test_columns_become_wide_rows_and_named_points_narrow_ones() -> None:
    result = convert(
        sources(telemetry({"active_power_watts": [5000, NAN], "fan_speed": [NAN, 3.5]}))
    )

    rows = result.samples
    assert rows.ts_us.tolist() == [T0_US]
    assert rows.values["active_power_watts"].tolist() == [5000.0]
    assert list(rows.values) == ["active_power_watts"]
    (odd,) = result.measurements
    assert (odd.name, odd.ts_us.tolist(), odd.values.tolist()) == (
        "fan_speed",
        [T0_US + 1_000_000],
        [3.5],
    )
    assert list(result.assets) == [("site", "battery", "asset-uid")]


def test_a_quantity_of_a_newer_agent_keeps_its_number() -> None:
    message = batch({"active_power_watts": [1.0]})
    raw = message.SerializeToString().replace(
        message.columns[0].SerializeToString(),
        b"\x08\x63" + message.columns[0].SerializeToString()[2:],
    )

    result = convert(sources(entry(log_pb2.TELEMETRY, raw)))

    assert [each.name for each in result.measurements] == ["quantity_99"]


def test_batches_with_different_columns_keep_their_order_and_lack_what_they_do_not_name() -> None:
    result = convert(
        sources(
            telemetry({"active_power_watts": [1, 2]}),
            telemetry({"voltage_volts": [230]}),
            telemetry({"active_power_watts": [math.inf, 4], "voltage_volts": [NAN, 231]}),
        )
    )

    rows = result.samples
    assert rows.source.tolist() == [0, 0, 1, 2]
    assert rows.values["active_power_watts"].tolist() == pytest.approx([1, 2, NAN, 4], nan_ok=True)
    assert rows.values["voltage_volts"].tolist() == pytest.approx([NAN, NAN, 230, 231], nan_ok=True)
    assert [(each.source, each.detail) for each in result.quarantined] == [
        (2, "infinite values: 1 of active_power_watts")
    ]


def test_a_point_named_like_a_quantity_is_no_quantity() -> None:
    message = batch({"active_power_watts": [1.0]})
    message.columns.add(name="voltage_volts", values=[2.0])

    result = convert(sources(entry(log_pb2.TELEMETRY, message.SerializeToString())))

    assert list(result.samples.values) == ["active_power_watts"]
    assert [each.name for each in result.measurements] == ["voltage_volts"]


def test_values_in_pieces_or_unpacked_are_the_same_values() -> None:
    """A parser must take them; no program of ours sends them."""
    number, double = b"\x1a", struct.pack  # field 3 as bytes with a length
    pieces = number + b"\x08" + double("<d", 1.0) + number + b"\x08" + double("<d", 2.0)
    unpacked = b"".join(b"\x19" + double("<d", each) for each in (3.0, 4.0))
    columns = b"".join(
        b"\x2a" + bytes([2 + len(values)]) + b"\x08" + bytes([quantity]) + values
        for quantity, values in (
            (agent_pb2.ACTIVE_POWER_WATTS, pieces),
            (agent_pb2.VOLTAGE_VOLTS, unpacked),
        )
    )
    times = agent_pb2.TelemetryBatch(t0_us=T0_US, dt_us=[0, 1]).SerializeToString()

    rows = convert(sources(entry(log_pb2.TELEMETRY, times + columns))).samples

    assert rows.values["active_power_watts"].tolist() == [1.0, 2.0]
    assert rows.values["voltage_volts"].tolist() == [3.0, 4.0]


def test_times_in_pieces_are_the_same_times() -> None:
    times = agent_pb2.TelemetryBatch(t0_us=T0_US, dt_us=[0, 1]).SerializeToString()
    pieces = times + b"\x22\x02\x04\x06"
    message = agent_pb2.TelemetryBatch(
        columns=[agent_pb2.Column(quantity=agent_pb2.VOLTAGE_VOLTS, values=[1, 2, 3, 4])]
    )

    rows = convert(sources(entry(log_pb2.TELEMETRY, pieces + message.SerializeToString()))).samples

    assert rows.ts_us.tolist() == [T0_US, T0_US + 1, T0_US + 2, T0_US + 3]


@given(
    batches=st.lists(
        st.lists(st.integers(-3_000_000_000, 3_000_000_000), min_size=1, max_size=12),
        min_size=1,
        max_size=5,
    )
)
def test_times_are_what_protobuf_reads(batches: list[list[int]]) -> None:
    messages = [batch({"voltage_volts": [0.0] * len(dt_us)}) for dt_us in batches]
    for message, dt_us in zip(messages, batches, strict=True):
        message.dt_us[:] = dt_us

    result = convert(
        sources(*(entry(log_pb2.TELEMETRY, each.SerializeToString()) for each in messages))
    )

    assert result.samples.ts_us.tolist() == [T0_US + dt for dt_us in batches for dt in dt_us]
    assert result.days() == {
        datetime.fromtimestamp((T0_US + dt) / 1e6, UTC).date() for dt_us in batches for dt in dt_us
    }


@pytest.mark.parametrize(
    "dt_us", [2**63 - 1, -(2**63), 2**62, 4_102_444_800_000_000, 3 * 86_400_000_000]
)
@pytest.mark.parametrize("t0_us", [T0_US, 2**63 - 1, -(2**63), 0])
def test_an_impossible_time_takes_only_its_own_batch(t0_us: int, dt_us: int) -> None:
    good = telemetry({"active_power_watts": [1.0]})
    message = batch({"active_power_watts": [math.inf, 2.0], "odd": [1.0, 2.0]}, t0_us=t0_us)
    message.dt_us[1] = dt_us

    result = convert(sources(good, entry(log_pb2.TELEMETRY, message.SerializeToString()), good))

    assert result.samples.source.tolist() == [0, 2]
    assert [(each.source, each.reason) for each in result.quarantined] == [(1, "BadTime")]
    assert result.measurements == []


@pytest.mark.parametrize("times", [b"\x00\x80", b"\x00" + b"\x80" * 10 + b"\x01"])
def test_times_that_protobuf_cannot_read_are_quarantined(times: bytes) -> None:
    message = batch({"active_power_watts": [1.0, 2.0]})
    del message.dt_us[:]
    body = message.SerializeToString() + b"\x22" + bytes([len(times)]) + times

    result = convert(sources(entry(log_pb2.TELEMETRY, body)))

    assert len(result.samples) == 0
    assert [each.source for each in result.quarantined] == [0]


@pytest.mark.parametrize("reason", bad_entries())
def test_a_bad_entry_is_quarantined_with_its_reason_and_stops_nobody(reason: str) -> None:
    good = telemetry({"active_power_watts": [1.0]})

    result = convert(sources(good, bad_entries()[reason], good))

    assert [(each.source, each.reason) for each in result.quarantined] == [(1, reason)]
    assert result.samples.source.tolist() == [0, 2]
    assert not result.events


@pytest.mark.parametrize("at_us", [0, -1, 4_102_444_800_000_000, 2**63 - 1])
def test_a_report_with_an_impossible_time_is_quarantined_whole(at_us: int) -> None:
    message = dispatch_pb2.DispatchReport(dispatch_uid=DISPATCH)
    message.transitions.add(phase="Acked", at_us=T0_US)
    message.transitions.add(phase="Active", at_us=at_us)

    result = convert(sources(entry(log_pb2.AGENT_REPORT, message.SerializeToString())))

    assert [each.reason for each in result.quarantined] == ["BadTime"]
    assert result.events == []


def test_text_that_postgresql_cannot_store_is_replaced() -> None:
    result = convert(
        sources(report("Acked", sequence=1, message="a\0b"), connection(message="c\0d"))
    )

    facts = result.events[0].report
    assert facts is not None
    assert "a\\ufffdb" in facts.json
    assert result.connections[0].message == "c\ufffdd"


def test_a_report_is_one_event_for_each_transition_and_goes_with_the_last() -> None:
    result = convert(sources(report("Acked", "Active", sequence=3)))

    assert [(event.phase, event.actor) for event in result.events] == [
        ("Acked", "Agent"),
        ("Active", "Agent"),
    ]
    assert [event.report is not None for event in result.events] == [False, True]


def test_a_transition_has_the_same_identity_whenever_it_is_told() -> None:
    told = convert(sources(report("Acked", sequence=1), report("Acked", "Active", sequence=2)))
    said = convert(sources(transition("Expired"), transition("Expired", at_us=T0_US + 5)))

    assert told.events[0].event_id == told.events[1].event_id != told.events[2].event_id
    assert said.events[0].event_id == said.events[1].event_id
    again = convert(sources(transition("Acked", "AckedReason")))
    assert again.events[0].event_id != told.events[0].event_id, "another actor"


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ("oidc:Zoë", "oidc:Zoë"),
        ("unknown", "unknown"),
        ("", None),
        ("eve\0", "eve\ufffd"),
        ("x" * 9000, "x" * 512),
    ],
    ids=["name", "unknown", "older operator", "null", "long"],
)
def test_who_ordered_it_is_stored_as_the_operator_says_it(said: str, stored: str | None) -> None:
    (event,) = convert(sources(transition("Submitted", created_by=said))).events

    assert event.created_by == stored


def test_no_agent_says_who_ordered_it() -> None:
    forged = control_pb2.HeadendTransition(created_by="eve").SerializeToString()
    told = report("Acked", sequence=1)
    told.body += forged

    assert [each.created_by for each in convert(sources(told)).events] == [None]


def test_gaps_and_connections_become_rows() -> None:
    result = convert(sources(gap(), connection("Refused")))

    assert (result.gaps[0].sequence, result.gaps[0].samples) == (7, 10)
    assert (result.connections[0].event, result.connections[0].source) == ("Refused", 1)


def test_the_columns_of_the_table_are_the_standard_quantities() -> None:
    assert list(QUANTITIES.values()) == [
        name.lower() for name, number in agent_pb2.Quantity.items() if number
    ]
    assert (
        "asset_id", "ts", *QUANTITIES.values(), "clock_offset_seconds", "received_at"
    ) == COLUMNS  # fmt: skip


def samples_of(values: dict[str, NDArray[np.float64]], count: int) -> Samples:
    return Samples(
        source=np.zeros(count, "i4"),
        asset=np.zeros(count, "i4"),
        ts_us=T0_US + np.arange(count),
        received_us=np.zeros(count, "i8"),
        values=values,
    )


def encoded(samples: Samples, *, numbered: bool) -> bytes:
    return b"".join(encode_samples(samples, np.array([42], "i8"), numbered=numbered))


def test_many_rows_are_numbered_through() -> None:
    count = 5000

    data = encoded(
        samples_of({"voltage_volts": np.arange(count, dtype="f8")}, count), numbered=True
    )

    size = (len(data) - 21) // count
    rows = [data[19 + n * size :][:size] for n in range(count)]
    assert [struct.unpack(">i", row[6:10])[0] for row in rows] == list(range(count))
    assert data == data[:19] + b"".join(rows) + b"\xff\xff"


value = st.one_of(st.just(math.nan), st.floats(allow_nan=False))


@given(
    rows=st.lists(st.lists(value, min_size=len(NUMBERS), max_size=len(NUMBERS)), max_size=6),
    numbered=st.booleans(),
)
def test_encoded_rows_are_what_copy_expects(rows: list[list[float]], *, numbered: bool) -> None:
    columns = np.array(rows).reshape(-1, len(NUMBERS)).T
    values = dict(zip(NUMBERS, columns, strict=True))

    data = encoded(samples_of(values, len(rows)), numbered=numbered)

    expected = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    for number, row in enumerate(rows):
        expected += struct.pack(">h", len(COLUMNS) + numbered)
        expected += struct.pack(">ii", 4, number) if numbered else b""
        expected += struct.pack(">iqiq", 8, 42, 8, T0_US + number - POSTGRES_EPOCH_US)
        for each in row:
            absent = math.isnan(each)
            expected += struct.pack(">i", -1) if absent else struct.pack(">id", 8, each)
        expected += struct.pack(">iq", 8, -POSTGRES_EPOCH_US)
    assert data == expected + b"\xff\xff"
