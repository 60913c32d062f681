"""After a lift the memory of who was replaced before counts no more, whoever goes on telling it."""

from dataclasses import dataclass, field

import pytest

from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_headend.fleet.sessions import CloneSuspectedError, Session, SessionTable
from derops_operator.gateways.replicas import Fleet

S = 1_000_000
T = 1_700_000_000 * S


def ledger_of(serial: str, suspected_us: int = 0) -> dispatch_pb2.IdentityLedger:
    known = dispatch_pb2.KnownCertificate(serial_number=serial)
    return dispatch_pb2.IdentityLedger(current=known, suspected_us=suspected_us)


@dataclass
class Replica:
    """One gateway's table, and an operator that relays to it all that it says."""

    table: SessionTable = field(default_factory=SessionTable)
    ledger: dispatch_pb2.IdentityLedger = field(default_factory=lambda: ledger_of("c1"))
    now_us: int = T

    def __post_init__(self) -> None:
        self.fleet = Fleet(T)
        for name in ("here", "there"):
            self.fleet.add_replica(name, 0, 0, T)

    def session(self, instance: str) -> Session:
        return Session(
            asset_uid="u",
            epoch=self.now_us // 1000,
            instance_id=instance,
            serial_number=self.ledger.current.serial_number,
            opened_us=self.now_us,
            since_us=self.now_us,
            capability=agent_pb2.Capability(),
        )

    def hello(self, instance: str, *, alive: bool = False) -> None:
        self.now_us += 60 * S
        changed = self.table.open(self.session(instance), self.ledger, self.now_us, alive=alive)
        said = self.table.change("u", changed, self.now_us)
        seen = self.fleet.note_session("here", said, self.ledger, self.now_us)
        if seen is not None:
            self.table.see(seen, self.ledger, self.now_us)

    def suspect_and_lift(self, instance: str) -> None:
        with pytest.raises(CloneSuspectedError):
            self.hello(instance, alive=True)
        self.table.suspect(self.session(instance), self.ledger, self.now_us)
        self.fleet.note_session(
            "here", self.table.change("u", (), self.now_us), self.ledger, self.now_us
        )
        self.ledger = ledger_of("c1", self.table.suspected_us("u"))
        self.now_us += 3600 * S


def test_a_thief_is_noticed_again_after_the_key_was_kept() -> None:
    replica = Replica()
    replica.hello("agent")
    replica.hello("thief", alive=True)
    replica.suspect_and_lift("agent")
    replica.hello("agent")
    replica.hello("another thief", alive=True)

    with pytest.raises(CloneSuspectedError):
        replica.hello("agent", alive=True)


def test_a_gateway_whose_clock_is_behind_the_lift_tells_of_a_clone_too() -> None:
    replica = Replica(ledger=ledger_of("c1", T + 3600 * S))
    replica.hello("agent")
    replica.hello("thief", alive=True)

    with pytest.raises(CloneSuspectedError):
        replica.hello("agent", alive=True)
