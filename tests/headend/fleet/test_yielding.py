"""Who hears from another replica that its session is over, and whether somebody took its place."""

from derops.holders import digest_of
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_headend.fleet.sessions import Session, SessionTable

S = 1_000_000
T = 1_700_000_000 * S
LEDGER = dispatch_pb2.IdentityLedger(current=dispatch_pb2.KnownCertificate(serial_number="c1"))


def session(instance: str, *, epoch_ms: int, opened_us: int) -> Session:
    return Session(
        asset_uid="u",
        epoch=epoch_ms,
        instance_id=instance,
        serial_number="c1",
        opened_us=opened_us,
        since_us=opened_us,
        capability=agent_pb2.Capability(),
    )


def seen_elsewhere(instance: str, *, epoch_ms: int, opened_us: int) -> control_pb2.EpochSeen:
    return control_pb2.EpochSeen(
        asset_uid="u",
        epoch=epoch_ms,
        serial_number="c1",
        instance_id=digest_of(instance),
        instances=[
            control_pb2.Instance(id=digest_of(instance), opened_us=opened_us, since_us=opened_us)
        ],
    )


def test_whoever_came_later_elsewhere_took_the_place() -> None:
    table = SessionTable()
    table.open(session("here", epoch_ms=T // 1000, opened_us=T), LEDGER, T, alive=False)
    seen = seen_elsewhere("there", epoch_ms=T // 1000 + 9000, opened_us=T + 9 * S)
    assert table.see(seen, LEDGER, T + 9 * S)
    (replaced,) = table.yield_to(seen, LEDGER, T + 9 * S, alive=True)
    assert replaced.id == digest_of("here")
    assert replaced.replaced_us == T + 9 * S


def test_an_earlier_one_that_outranks_took_nobody_s_place() -> None:
    """An agent that lost its ledger, and whose clock was set back, is no clone of itself."""
    table = SessionTable()
    table.open(session("new", epoch_ms=T // 1000, opened_us=T), LEDGER, T, alive=False)
    seen = seen_elsewhere("before", epoch_ms=T // 1000 + 2000, opened_us=T - S)
    assert table.see(seen, LEDGER, T + S)
    assert table.yield_to(seen, LEDGER, T + S, alive=True) == []

    above = session("new", epoch_ms=T // 1000 + 3000, opened_us=T + S)
    table.open(above, LEDGER, T + S, alive=False)
    assert table.last("u") is above
