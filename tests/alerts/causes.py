"""What breaks for real, which alert must tell of it, and what may tell of it as well."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from tests.alerts import breaking
from tests.e2e.acting import Pilot


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Something that breaks."""

    name: str
    alert: str
    """What must fire."""

    broken: Callable[[Pilot], contextlib.AbstractContextManager[None]]
    """Breaks it, and mends it at the end of the block."""

    may: frozenset[str] = frozenset()
    """What may fire as well: it is as true."""

    needs: str = ""
    """A program without which it cannot be broken."""

    @property
    def can_be_broken(self) -> bool:
        """Whether this machine has what it takes."""
        return not self.needs or shutil.which(self.needs) is not None


_TARGET = frozenset({"DeropsTargetDown"})
"""Before a program that answers no more is known to be the only one."""

_RESTART = _TARGET | {"DeropsProgramDown"}
"""On a busy machine a program may be away for longer than ``for`` is here."""

CAUSES = (
    Cause(
        name="operator killed",
        alert="DeropsProgramDown",
        broken=breaking.killed("operator"),
        may=_TARGET,
    ),
    Cause(
        name="gateway killed",
        alert="DeropsProgramDown",
        broken=breaking.killed("gateway"),
        may=_TARGET,
    ),
    Cause(
        name="writer killed",
        alert="DeropsProgramDown",
        broken=breaking.killed("writer"),
        may=_TARGET,
    ),
    Cause(
        name="writer stopped",
        alert="DeropsProgramDown",
        broken=breaking.stopped_writer,
        may=_TARGET,
    ),
    Cause(name="API killed", alert="DeropsProgramDown", broken=breaking.killed("api"), may=_TARGET),
    Cause(
        name="API restarting", alert="DeropsRestarting", broken=breaking.restarting, may=_RESTART
    ),
    Cause(
        name="a gateway too many",
        alert="DeropsGatewayNotConnected",
        broken=breaking.a_gateway_too_many,
        may=_RESTART,
    ),
    Cause(
        name="database stopped",
        alert="DeropsDatabaseFailing",
        broken=breaking.no_database,
        may=frozenset({"DeropsAuditWaiting"}),
    ),
    Cause(
        name="writer held by a lock",
        alert="DeropsWriterBehind",
        broken=breaking.locked_table,
        may=frozenset({"DeropsDatabaseFailing"}),
    ),
    Cause(
        name="no database for the API",
        alert="DeropsAuditWaiting",
        broken=breaking.no_database_for_the_api,
        may=frozenset({"DeropsNotReady"}),
    ),
    Cause(
        name="event log full",
        alert="DeropsEventLogFull",
        broken=breaking.full_log,
        may=_RESTART,
    ),
    Cause(
        name="disk of the event log fails",
        alert="DeropsEventLogFailing",
        broken=breaking.failing_disk,
        needs="strace",
        may=_RESTART,
    ),
    Cause(
        name="event log damaged",
        alert="DeropsEventLogDamaged",
        broken=breaking.damaged_log,
        may=_RESTART | {"DeropsDataQuarantined"},
    ),
    Cause(
        name="agents killed",
        alert="DeropsManyAssetsWithoutData",
        broken=breaking.no_agents,
        may=frozenset({"DeropsAssetsWithoutData"}),
    ),
    Cause(
        name="agent away at the end",
        alert="DeropsDevicesRevertedLate",
        broken=breaking.late_revert,
        may=frozenset({"DeropsDeviceNotReverted"}),
    ),
    Cause(
        name="device silent at the end",
        alert="DeropsDeviceNotReverted",
        broken=breaking.silent_at_the_end,
        may=frozenset({"DeropsDevicesRevertedLate"}),
    ),
    Cause(name="key stolen", alert="DeropsIdentityUsedTwice", broken=breaking.stolen_key),
    Cause(
        name="cert-manager away",
        alert="DeropsAgentCertificatesOverdue",
        broken=breaking.no_cert_manager,
    ),
    Cause(
        name="certificate soon over",
        alert="DeropsServerCertificateExpiring",
        broken=breaking.short_certificate,
    ),
    Cause(name="trust refused", alert="DeropsTrustNotDelivered", broken=breaking.no_trust),
)
