"""What the first version wrote is read by this one: log, outbox, desired state, and a ledger.

The files in ``first`` are what it left, as SQL. They never change; what a later version writes
gets a folder of its own.
"""

import sqlite3
from pathlib import Path

from tests.agent.fakes import Agent, FakeListener
from tests.headend.storage.conftest import Query, database, database_url, query

from derops.ids import AssetName
from derops.wire.v1 import agent_pb2, dispatch_pb2, log_pb2
from derops_agent.asset.ledger import Ledger
from derops_agent.ports import Reading, Setpoints
from derops_agent.telemetry.outbox_store import OutboxStore
from derops_headend.access.operator_key import OperatorKeys
from derops_headend.eventlog.sqlite import SqliteEventLog
from derops_headend.fleet.desired import Revision, Snapshot, Written
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.storage.database import WriterDatabase
from derops_headend.writing.rows import LogSource

__all__ = ["database", "database_url", "query"]
FIRST = Path(__file__).parent / "first"


def lay_down(name: str, path: Path) -> None:
    """Make the file that the first version left."""
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript((FIRST / name).read_text())
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


async def test_a_log_is_read_and_goes_on(
    tmp_path: Path, database: WriterDatabase, query: Query
) -> None:
    lay_down("events.sql", tmp_path / "events.db")
    log = SqliteEventLog(tmp_path / "events.db")
    asset = dispatch_pb2.AssetId(uid="u", namespace="pilot-north", name="battery-7")
    await log.append([log_pb2.LogEntry(kind=log_pb2.CONNECTION, asset=asset, received_us=1)])

    records = log.read(0)
    assert [record.offset for record in records] == [1, 2, 3, 4]
    sources = [LogSource(record.offset, 0, record.record.entries[0]) for record in records]
    database.store(sources, after=0, through=4)
    assert query("select active_power_watts from telemetry order by ts") == [(5000.0,), (5001.0,)]
    assert query("select name, value from measurement order by ts") == [("fan", 3), ("fan", 4)]
    assert query("select samples from telemetry_gap") == [(3,)]
    assert query("select phase, active_seconds from dispatch_history") == [("Complete", 60)]
    assert query("select count(*) from quarantine") == [(0,)]
    log.close()


def test_an_outbox_is_sent_under_its_own_id(tmp_path: Path) -> None:
    lay_down("outbox.sql", tmp_path / "outbox.db")
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(AssetName("pilot-north", "battery-7"), FakeListener())
    outbox.add(Reading(at_us=1_700_000_006_000_000, values={1: 5006.0}))
    store.flush()

    found = [agent_pb2.AgentMessage.FromString(wire) for _, wire in outbox.read(0, 100)]
    assert outbox.outbox_id == "c36cf75745ac0dcb4a81aa30f48cbf5c"
    assert (outbox.first_sequence, outbox.gap_sequence, outbox.stored_sequence) == (5, 5, 7)
    assert [message.WhichOneof("kind") for message in found] == ["gap", "telemetry", "telemetry"]
    assert (found[0].gap.samples, found[1].telemetry.columns[0].values[0]) == (5, 5005.0)
    store.close()


async def test_a_window_that_was_open_is_taken_up_and_ended(tmp_path: Path) -> None:
    lay_down("ledger.sql", tmp_path / "ledger.db")
    agent = Agent(tmp_path)
    agent.device.held = Setpoints(active_power_watts=5000)
    agent.clock.pass_seconds(80)
    await agent.controller.boot()
    await agent.wait(90, step=10)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert (agent.report().interruptions, agent.report().active_milliseconds) == (1, 100_000)
    assert agent.device.held.active_power_watts == 0
    agent.ledger.close()


def test_a_ledger_keeps_its_revision_and_takes_an_era(tmp_path: Path) -> None:
    lay_down("ledger.sql", tmp_path / "ledger.db")
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.revision == agent_pb2.Revision(operator_start_ms=1, counter=1)

    later = agent_pb2.Revision(era=1_800_000_000, operator_start_ms=5, counter=7)
    ledger.save([], alive=ledger.alive, revision=later)
    ledger.close()

    again = Ledger(tmp_path / "ledger.db")
    assert again.revision == later
    again.close()


async def test_desired_state_is_served_and_its_first_era_is_0(tmp_path: Path) -> None:
    lay_down("desired.sql", tmp_path / "desired.db")
    store = DesiredStore(tmp_path / "desired.db", 1)
    loaded = store.load()
    assert loaded is not None
    assert loaded[0].revision == Revision(era=0, operator_start_ms=1_700_000_000_000, version=3)
    written = Written(written_us=1_700_000_001_000_000, ledger_id="l1")
    assert loaded[1] == {"d1": written}
    assert store.operator_keys() == OperatorKeys()

    keys = OperatorKeys(current="b", previous="a", previous_until_us=9)
    await store.keep_operator_keys(keys)
    later = Revision(era=1_800_000_000, operator_start_ms=5, version=1)
    await store.replace(Snapshot(revision=later, assets=(), dispatches=()))
    store.close()

    again = DesiredStore(tmp_path / "desired.db", 1)
    loaded = again.load()
    assert loaded is not None
    assert (loaded[0].revision, again.operator_keys()) == (later, keys)
    again.close()
