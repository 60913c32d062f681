"""What the drill breaks, what is true then, and which alert is meant for it."""

import random
from dataclasses import dataclass

from tests.alerts import breaking as shared
from tests.drill import breaking
from tests.drill.breaking import DISPATCH, Broken, for_all, in_the_database
from tests.drill.ground import SIMULATED, UNITS
from tests.e2e import failing_database

from derops.data_path import AssetFault, SharedFault
from derops.data_path import SeenFault as Seen
from derops.lifecycle import Reason
from derops_cli.dispatches import Stop

OF_MANY = "DeropsAssetsWithoutData"
"""One asset alone is told by its condition; from three on, by this alert."""

EVERY = (*SIMULATED, *UNITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that is broken."""

    name: str
    truth: str
    """What ``diagnose`` must name: a reason, or where a dispatch stopped and why."""

    alert: str
    """Which is meant for it."""

    broken: Broken
    assets: tuple[str, ...] = EVERY
    """Of which one gives no data, by the symptom."""

    dispatch: str = ""
    """What failed instead."""

    def symptom(self, asset: str) -> str:
        """Return all that is said of it."""
        return f"dispatch {self.dispatch}" if self.dispatch else f"no data from {asset}"


FAULTS = (
    Fault(
        name="device silent",
        truth=AssetFault.DEVICE_SILENT,
        alert=OF_MANY,
        broken=breaking.silent_device,
        assets=SIMULATED,
    ),
    Fault(
        name="dead unit behind a Modbus gateway",
        truth=AssetFault.DEVICE_SILENT,
        alert=OF_MANY,
        broken=breaking.dead_unit,
        assets=tuple(UNITS),
    ),
    Fault(
        name="clock of the agent wrong",
        truth=AssetFault.CLOCK_WRONG,
        alert=OF_MANY,
        broken=breaking.wrong_clock,
        assets=SIMULATED,
    ),
    Fault(
        name="disk of the agent full",
        truth=AssetFault.OUTBOX_FAILING,
        alert=OF_MANY,
        broken=breaking.full_disk,
        # A simulated device would live on that disk as well.
        assets=tuple(UNITS),
    ),
    Fault(
        name="agent killed",
        truth=AssetFault.AGENT_OFFLINE,
        alert=OF_MANY,
        broken=breaking.killed_agent,
    ),
    Fault(
        name="network between agent and gateway cut",
        truth=AssetFault.AGENT_OFFLINE,
        alert=OF_MANY,
        broken=breaking.cut_network,
        assets=SIMULATED,
    ),
    Fault(
        name="certificate expired",
        truth=AssetFault.CERTIFICATE_EXPIRED,
        alert="DeropsAgentCertificatesOverdue",
        broken=breaking.expired_certificate,
        assets=SIMULATED,
    ),
    Fault(
        name="identity quarantined",
        truth=AssetFault.QUARANTINED,
        alert="DeropsIdentityUsedTwice",
        broken=breaking.quarantined,
    ),
    Fault(
        name="gateway killed",
        truth=SharedFault.GATEWAY_LOST,
        alert="DeropsProgramDown",
        broken=for_all(shared.killed("gateway")),
    ),
    Fault(
        name="operator killed",
        truth=Seen.OPERATOR_SILENT,
        alert="DeropsProgramDown",
        broken=for_all(shared.killed("operator")),
    ),
    Fault(
        name="disk of the event log fails",
        truth=SharedFault.LOG_FAILING,
        alert="DeropsEventLogFailing",
        broken=for_all(shared.failing_disk),
    ),
    Fault(
        name="event log full, as nobody empties it",
        truth=SharedFault.WRITER_SILENT,
        alert="DeropsEventLogFull",
        broken=for_all(shared.full_log),
    ),
    Fault(
        name="event log damaged",
        truth=SharedFault.LOG_DAMAGED,
        alert="DeropsEventLogDamaged",
        broken=for_all(shared.damaged_log),
    ),
    Fault(
        name="writer killed",
        truth=SharedFault.WRITER_SILENT,
        alert="DeropsProgramDown",
        broken=for_all(shared.killed("writer")),
    ),
    Fault(
        name="table of the database locked",
        # Of a call that does not return for 20 s the writer says that the database fails.
        truth=SharedFault.DATABASE_FAILING,
        alert="DeropsWriterBehind",
        broken=for_all(shared.locked_table),
    ),
    Fault(
        name="database down",
        truth=SharedFault.DATABASE_UNREACHABLE,
        alert="DeropsDatabaseFailing",
        broken=for_all(shared.no_database),
    ),
    Fault(
        name="database full",
        truth=SharedFault.DATABASE_FULL,
        alert="DeropsDatabaseFailing",
        broken=in_the_database(failing_database.full),
    ),
    Fault(
        name="password of the database wrong",
        truth=SharedFault.DATABASE_REFUSES,
        alert="DeropsDatabaseFailing",
        broken=in_the_database(failing_database.refusing),
    ),
    Fault(
        name="device refuses what is ordered",
        truth=f"{Stop.DEVICE}: {Reason.DEVICE_WRITE_FAILED}",
        alert="DeropsDispatchesFailing",
        broken=breaking.refusing_device,
        assets=SIMULATED,
        dispatch=DISPATCH,
    ),
    Fault(
        name="agent away when something is ordered",
        truth=Stop.STREAM,
        alert="DeropsDispatchesFailing",
        broken=breaking.late_order,
        dispatch=DISPATCH,
    ),
)


def choose(wanted: str, rounds: int, rng: random.Random) -> list[Fault]:
    """Return the faults to play, in a random order.

    Args:
        wanted: Names with semicolons between, ``all``, or nothing.
        rounds: How many, where nothing is wanted.
        rng: Chooses.
    """
    if wanted == "all":
        return rng.sample(FAULTS, len(FAULTS))
    if wanted:
        names = {each.strip() for each in wanted.split(";")}
        found = [each for each in FAULTS if each.name in names]
        return rng.sample(found, len(found)) if len(found) == len(names) else []
    return [rng.choice(FAULTS) for _ in range(rounds)]
