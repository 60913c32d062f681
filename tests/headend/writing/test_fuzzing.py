"""Whatever a gateway lets through, the writer stores or puts into quarantine; it never stops.

DEROPS_MESSAGES says how many messages (20,000), DEROPS_SEED which.
"""

import json
import os
import random
from datetime import UTC, datetime, timedelta
from itertools import islice

import psycopg
from tests.headend.writing.fuzzing import entry_of, messages
from tests.headend.writing.making import sources, telemetry

from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.roll_ups import roll_up
from derops_headend.writing.rows import QUANTITIES, LogSource

MESSAGES = int(os.environ.get("DEROPS_MESSAGES") or 20_000)
SEED = int(os.environ.get("DEROPS_SEED") or 20260104)
ROUND = 500


def test_what_nobody_has_changed_is_stored_whole(database_url: str) -> None:
    """If honest messages were not stored either, those below would prove nothing."""
    columns = {"active_power_watts": [1.0, 2.0, 3.0], "fan_speed": [7.0, 8.0, 9.0]}
    database = WriterDatabase.connect(database_url, "log")
    tally = database.store(sources(telemetry(columns)), after=0, through=1)
    database.close()

    assert (tally.samples, tally.measurements, tally.quarantined.total()) == (3, 3, 0)


def test_nothing_that_a_gateway_lets_through_stops_the_writer(database_url: str) -> None:
    print(f"seed {SEED}, {MESSAGES} messages")
    assert MESSAGES >= ROUND, f"DEROPS_MESSAGES is {MESSAGES}, fewer than {ROUND} try nothing"
    made = messages(random.Random(SEED))
    received_us = round(datetime.now(UTC).timestamp() * 1e6)
    entries = stored = kept = 0
    database = WriterDatabase.connect(database_url, "log")
    for offset in range(1, MESSAGES // ROUND + 1):
        sources = [
            LogSource(offset, index, entry)
            for index, wire in enumerate(islice(made, ROUND))
            if (entry := entry_of(wire, received_us)) is not None
        ]
        tally = database.store(sources, after=offset - 1, through=offset)
        entries += len(sources)
        stored += tally.samples + tally.measurements + tally.events + tally.gaps
        kept += tally.quarantined.total()
    database.close()

    counts = {"messages": MESSAGES, "entries": entries, "stored": stored, "quarantined": kept}
    print(json.dumps(counts))
    assert entries > MESSAGES // 5, "hardly anything got through the gateway"
    assert min(stored, kept) > MESSAGES // 50, "hardly anything was tried"
    with psycopg.connect(database_url, autocommit=True) as connection:
        while connection.execute("select 1 from roll_up_due limit 1").fetchone():
            roll_up(connection, datetime.now(UTC) + timedelta(days=9), 500)
        odd = " or ".join(f"not abs({name}) < 'Infinity'" for name in QUANTITIES.values())
        for query in (
            f"select count(*) from telemetry where {odd}",
            "select count(*) from measurement where not abs(value) < 'Infinity'",
            "select count(*) from quarantine where reason = 'DatabaseRefused'",
        ):
            assert connection.execute(query.encode()).fetchone() == (0,), query
        connection.execute("select * from dispatch_history").fetchall()
